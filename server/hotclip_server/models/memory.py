"""How much memory is free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes_of(device: str) -> Callable[[], int | None]:
    """Reads the free memory of a device, e.g. "cuda:0"; on CUDA the smaller of the device's and
    the host's, through which weights go."""
    if not device.startswith("cuda"):
        return host_free_bytes

    def free() -> int | None:
        import torch

        on_device: int = torch.cuda.mem_get_info(device)[0]
        on_host = host_free_bytes()
        return on_device if on_host is None else min(on_device, on_host)

    return free


def host_free_bytes() -> int | None:
    """Bytes that new allocations of this process can get; None where it can't be told.

    The smaller of MemAvailable (proc(5)) and what the cgroup v2 limit leaves.
    """
    candidates = [
        free for free in (_available(_MEMINFO), _cgroup_free(_CGROUP)) if free is not None
    ]
    return min(candidates, default=None)


def _available(meminfo: Path) -> int | None:
    if not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _cgroup_free(folder: Path) -> int | None:
    limit, used, stat = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.exists() and used.exists() and stat.exists()):
        return None
    if (text := limit.read_text().strip()) == "max":
        return None
    # The kernel drops inactive file pages before it refuses memory.
    droppable = dict(line.split() for line in stat.read_text().splitlines()).get("inactive_file", 0)
    return max(0, int(text) - int(used.read_text()) + int(droppable))
