"""A process that ends with the one that began it, whatever it is at."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """From now on the kernel kills this process when the thread that began it ends, so with any
    end of its process (prctl(2)); on Linux alone.

    Args:
        parent: Id of the process that began this one. Raises SystemExit if it is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that began this one is gone")
