"""How much memory a version may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotclip_server.models import memory
from hotclip_server.models.memory import free_bytes_of, host_free_bytes


def cgroup(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text("700\n")
    (folder / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    return folder


def test_available_memory_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9 kB\nMemAvailable:       3 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "absent")
    assert host_free_bytes() == 3072
    monkeypatch.setattr(memory, "_CGROUP", cgroup(tmp_path, "1000\n"))
    assert host_free_bytes() == 500, "1000 allowed, 700 used, 200 of them droppable"
    cgroup(tmp_path, "max\n")
    assert host_free_bytes() == 3072
    meminfo.unlink()
    assert host_free_bytes() is None


def test_this_host_says_something_plausible() -> None:
    free = free_bytes_of("cpu")()
    assert free is None or 0 <= free < 1 << 50
