"""Everything that a device must do, once: parity, speed, a fine-tune, a swap and a rollback.

Runs the tests marked gpu (on CUDA), then a real server for each model, and writes the
figures to benchmarks/results/gpu_check.<device>.json. Exit code 0: all passed; 1: something
failed; 2: there is no such device here.
"""

import argparse
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.end_to_end import check_model

ROOT = Path(__file__).parents[1]
MODELS = ("builtin:mini", "ViT-B-32::")
LIBRARIES = ("torch", "open_clip_torch", "grpcio", "protobuf", "numpy", "pillow", "transformers")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        reason = f"PyTorch {torch.__version__} finds no CUDA device"
        print(f"{reason}; --device cpu checks everything but the device", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"device": options.device, "name": device_name(options.device)}
    report["versions"] = versions()
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
    report["passed"] = passed
    path = write(report, options.output)
    print(f"{'passed' if passed else 'FAILED'}: {path}")
    return 0 if passed else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:<n> or cpu (default cuda)")
    parser.add_argument("--models", nargs="+", default=MODELS, help="sources of LoadVersion")
    parser.add_argument("--steps", type=int, default=8, help="training steps (default 8)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--skip-tests", action="store_true", help="leave the tests marked gpu out")
    return parser.parse_args(arguments)


def device_name(device: str) -> str:
    """As its maker calls it, e.g. "NVIDIA H100 80GB HBM3"; "cpu" for a processor."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def versions() -> dict[str, str]:
    """Of Python, CUDA and the libraries that matter; those that are there."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda or "none")}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def run_tests() -> tuple[str, bool]:
    """The closing line of the tests marked gpu, and whether they passed (and any ran)."""
    command = [sys.executable, "-m", "pytest", "-W", "default", "-m", "gpu", "tests/gpu"]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(run.stdout, flush=True)
    closing = run.stdout.strip().rpartition("\n")[2].strip("= ")
    return closing, run.returncode == 0 and "passed" in closing


def write(report: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", report["name"].lower()).strip("-")
    path = folder / f"gpu_check.{slug}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
