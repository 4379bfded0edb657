"""Everything that a device must do, once: parity, speed, a fine-tune, a swap and a rollback.

Runs the tests marked gpu (on CUDA), then a real server for each model, then the suite encode
in short, and writes the figures to benchmarks/results/gpu_check.<device>.json and
encode.<device>.json. Exit code 0: all passed; 1: something failed; 2: there is no such device.
A target of speed that was missed is no failure: the table says it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.end_to_end import check_model
from benchmarks.machine import cuda_version, device_name, has_device, slug, versions
from benchmarks.settings import RESULTS, Settings
from benchmarks.suites import run_suite
from benchmarks.worker import WorkerFailed

ROOT = Path(__file__).parents[1]
MODELS = ("builtin:mini", "ViT-B-32::")
BENCH_SECONDS = 3.0
"""Of a segment of the suite encode, so that all of it takes a few minutes."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not has_device(options.device):
        reason = "PyTorch finds no CUDA device"
        print(f"{reason}; --device cpu checks everything but the device", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"device": options.device, "name": device_name(options.device)}
    report |= {"cuda": cuda_version(options.device), "versions": versions()}
    passed = True
    if options.device.startswith("cuda") and not options.skip_tests:
        report["tests"], passed = run_tests()
    report["models"] = {}
    for model in options.models:
        print(f"{model} on {report['name']}", flush=True)
        with tempfile.TemporaryDirectory(prefix="hotclip-check-") as folder:
            figures = check_model(model, options.device, Path(folder), steps=options.steps)
        print(json.dumps(figures, indent=2), flush=True)
        report["models"][model] = figures
        passed = passed and bool(figures["passed"])
    if not options.skip_bench:
        passed = bench(options.device, options.output) and passed
    report["passed"] = passed
    path = write(report, options.output)
    print(f"{'passed' if passed else 'FAILED'}: {path}")
    return 0 if passed else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:<n> or cpu (default cuda)")
    parser.add_argument("--models", nargs="+", default=MODELS, help="sources of LoadVersion")
    parser.add_argument("--steps", type=int, default=8, help="training steps (default 8)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--skip-tests", action="store_true", help="leave the tests marked gpu out")
    parser.add_argument("--skip-bench", action="store_true", help="leave the suite encode out")
    return parser.parse_args(arguments)


def run_tests() -> tuple[str, bool]:
    """The closing line of the tests marked gpu, and whether they passed (and any ran)."""
    command = [sys.executable, "-m", "pytest", "-W", "default", "-m", "gpu", "tests/gpu"]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(run.stdout, flush=True)
    closing = run.stdout.strip().rpartition("\n")[2].strip("= ")
    return closing, run.returncode == 0 and "passed" in closing


def bench(device: str, output: Path) -> bool:
    """Runs the suite encode in short; whether every answer was right."""
    settings = Settings(device=device, seconds=BENCH_SECONDS, output=output)
    try:
        path = run_suite("encode", settings)
    except WorkerFailed as error:
        print(f"the suite encode FAILED, it wrote nothing: {error}", file=sys.stderr)
        return False
    print(f"\n{path}\n")
    return True


def write(report: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu_check.{slug(report['name'])}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
