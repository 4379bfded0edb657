"""What a version that is gone held goes back to the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hotclip_server import heap

# In a process of its own: what else lies in the heap decides what can go back.
_KEEPS_AND_TRIMS = """
import ctypes, resource
from hotclip_server.heap import trim_heap

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def filled(size):
    at = libc.malloc(size)
    ctypes.memset(at, 1, size)
    return at

def held():
    with open("/proc/self/statm") as told:
        return int(told.read().split()[1]) * resource.getpagesize() >> 20

libc.free(filled(16 << 20))  # from now on what is smaller is of the heap: mallopt(3)
weights = []
for _ in range(64):
    weights.append(filled(4 << 20))
    filled(4 << 10)  # stays, in between
most = held()
for weight in weights:
    libc.free(weight)
freed = held()
trim_heap()
print(most - freed, most - held())
"""
_TUNED_BY = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


@pytest.mark.skipif(heap._malloc_trim is None, reason="the C library has no malloc_trim")
def test_free_memory_between_other_things_goes_back() -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(_TUNED_BY)}
    told = subprocess.run(
        [sys.executable, "-c", _KEEPS_AND_TRIMS],
        check=True,
        capture_output=True,
        text=True,
        env=plain,
    ).stdout
    kept, trimmed = map(int, told.split())
    assert kept < 32 < 200 < trimmed, "of 256 MiB"
