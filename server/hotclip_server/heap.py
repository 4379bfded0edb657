"""Memory that the C library's heap holds and nobody uses."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable


def _found() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3); None with another C library."""
    if sys.platform != "linux":
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim.argtypes = [ctypes.c_size_t]
    found: Callable[[int], int] | None = trim
    return found


_malloc_trim = _found()


def trim_heap() -> None:
    """Gives the system what is free in the heap; does nothing where memory is not glibc's.

    Whoever asks for memory of the same arena waits meanwhile, so this is for when much was freed.
    What is freed in between other things the heap keeps, like packed weights of a version that is
    gone, until another is loaded in their place or for ever.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)
