"""A bit that processes share: one of them changes it, others look as often as they like."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref


class SharedFlag:
    """Down at first. Looking costs no system call, changing neither; any thread.

    Args:
        descriptor: Of the flag of another process, inherited; None: a new flag.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = unnamed_memory("hotclip-flag", 1) if descriptor is None else descriptor
        """For `pass_fds`; open as long as this object lives."""
        self._memory = mmap.mmap(self.descriptor, 1)
        weakref.finalize(self, os.close, self.descriptor)

    def set(self, up: bool) -> None:
        """Changes it for all."""
        self._memory[0] = up

    @property
    def up(self) -> bool:
        """As it is now."""
        return self._memory[0] != 0


def unnamed_memory(label: str, size: int) -> int:
    """A file descriptor of zeros in memory that no name leads to: they end with the last process
    that has it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(label, os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
