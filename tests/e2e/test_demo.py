"""The demonstration in small: the same command, fewer drawings, fewer steps."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

CONCEPTS = 120


class _Page(HTMLParser):
    """Counts tags and keeps what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "href") and value and not value.startswith("data:"):
                self.fetched.append(value)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_demonstration_in_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hotclip_examples.demo", "--output", str(tmp_path)]
    command += ["--concepts", str(CONCEPTS), "--epochs", "2", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert result["failed"] == 0
    assert result["mixed"] == 0
    assert result["requests"] >= 200
    assert result["overlapping_flip"] > 0
    assert set(result["versions"]) == {result["version_before"], result["version_after"]}
    assert result["golden_separation"] > 2 * result["golden_tolerance"]
    for name in ("mrr_before", "mrr_after", "mrr_english", "hit10_before", "hit10_after"):
        assert 0 < result[name] <= 1, name
    assert result["longest_gap_ms"] > 0
    assert result["train_s"] > 0
    assert "German, after" in done.stdout

    page = _Page()
    page.feed((tmp_path / "report.html").read_text("utf-8"))
    assert page.fetched == []
    assert page.tags["img"] == 10 * 2 * 5
    assert page.tags["figure"] == 3

    of_the_job = _Page()
    of_the_job.feed((tmp_path / "job.html").read_text("utf-8"))
    assert of_the_job.fetched == []
    assert of_the_job.tags["img"] > 0
    assert of_the_job.tags["figure"] >= 5
