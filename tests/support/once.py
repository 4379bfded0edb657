"""Things that all processes of a test run share, made by the first that needs them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "TESTS_SHARED_FOLDER"
"""Variable: the folder of this run, also for the workers of pytest-xdist."""


@contextmanager
def shared_folder() -> Iterator[None]:
    """For as long as a run lasts."""
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="hotclip-tests-")
    try:
        yield
    finally:
        shutil.rmtree(os.environ.pop(FOLDER))


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` has filled, in this process or in another; it is only read then."""
    shared = Path(os.environ[FOLDER])
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = Path(tempfile.mkdtemp(dir=shared))
            make(unfinished)
            unfinished.rename(folder)
    return folder
