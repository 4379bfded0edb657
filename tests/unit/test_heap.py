"""What a version that is gone held goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hotclip_server import heap

# In a process of its own: what else lies in the heap decides what can go back.
_KEEPS_AND_TRIMS = """
import os, psutil, torch
from hotclip_server.heap import trim_heap

large = torch.ones(4 << 20)
del large  # 16 MiB: from now on what is smaller is of the heap
weights, others = [], []
for _ in range(64):
    weights.append(torch.ones(1 << 20))
    others.append(torch.ones(1 << 10))  # that stay, in between
memory = psutil.Process().memory_info
held = memory().rss
weights.clear()
kept = memory().rss
trim_heap()
print(held - kept >> 20, held - memory().rss >> 20)
"""


@pytest.mark.skipif(heap._malloc_trim is None, reason="the C library has no malloc_trim")
def test_free_memory_between_other_things_goes_back() -> None:
    told = subprocess.run(
        [sys.executable, "-c", _KEEPS_AND_TRIMS], check=True, capture_output=True, text=True
    ).stdout
    kept, trimmed = map(int, told.split())
    assert kept < 32 < 200 < trimmed, "of 256 MiB"
