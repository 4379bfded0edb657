"""The tutorials run from top to bottom as they are, with fewer drawings."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.graphs import know_graphs
from support.server import ServerProcess

FOLDER = Path(__file__).parents[2] / "examples/tutorials"
ADDRESS = "127.0.0.1:50051"
SIZES = re.compile(r"^CONCEPTS, EPOCHS = \d+, \d+", re.MULTILINE)
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script_of(page: str, address: str) -> str:
    """The blocks of a page that run, for another server and in small."""
    text = (FOLDER / page).read_text("utf-8")
    blocks = [code for skipped, code in BLOCK.findall(text) if not skipped]
    code = "\n".join(blocks).replace(ADDRESS, address)
    code, found = SIZES.subn("CONCEPTS, EPOCHS = 90, 2", code)
    assert found == 1
    return code


def run(code: str, folder: Path) -> str:
    """What it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def went(metric: str, printed: str) -> tuple[float, float]:
    """From where to where a metric went, as "name 0.1 -> 0.2" says."""
    found = re.search(rf"^{metric} +(\d\.\d+) -> (\d\.\d+)$", printed, re.MULTILINE)
    assert found, printed
    return float(found[1]), float(found[2])


@pytest.mark.slow
def test_text_to_image(make_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    know_graphs(tmp_path / "data")
    printed = run(script_of("text-to-image.md", make_server().address), tmp_path)
    assert "153 pairs, 0 bad, 0 given twice" in printed
    assert "SUCCEEDED" in printed
    for metric in ("clip-text-to-clip-vision_reciprocal_rank", "test mRR"):
        before, after = went(metric, printed)
        assert after > before
    assert re.findall(r"alpha (\S+)", printed) == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert "(2, 128) (1, 128)" in printed
    assert "as the server gives them: True" in printed
    assert "ONNX agrees: True" in printed
    assert printed.splitlines()[-1] == "True"
    assert (tmp_path / "before-after.svg").read_text("utf-8").count("<image") >= 50
    assert "<svg" in (tmp_path / "emoji-english.html").read_text("utf-8")


@pytest.mark.slow
def test_multilingual(make_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    know_graphs(tmp_path / "data")
    printed = run(script_of("multilingual.md", make_server().address), tmp_path)
    found = dict(re.findall(r"^(before|after) +German mRR (0\.\d+)", printed, re.MULTILINE))
    assert float(found["after"]) > float(found["before"])
    assert "image vectors stay valid: True" in printed
    assert "follows: True" in printed
    first, second = map(int, re.findall(r"^found: (\d+)%$", printed, re.MULTILINE))
    assert second > first
    assert printed.splitlines()[-1] == "(2, 128)"
    assert (tmp_path / "before-after-german.svg").exists()
