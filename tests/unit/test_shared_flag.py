"""A bit that several processes see."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from hotclip_server.shared_flag import SharedFlag

LOOK = """
import sys
from hotclip_server.shared_flag import SharedFlag
flag = SharedFlag(int(sys.argv[1]))
for _ in sys.stdin:
    print(int(flag.up), flush=True)
"""


def test_another_process_sees_what_it_is_at_the_moment() -> None:
    flag = SharedFlag()
    assert not flag.up
    flag.set(True)
    with subprocess.Popen(
        [sys.executable, "-c", LOOK, str(flag.descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[flag.descriptor],
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        for up in (True, False, True):
            flag.set(up)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{up:d}\n"


@pytest.mark.parametrize("named", [False, True], ids=["memory", "file"])
def test_it_ends_with_its_last_user(named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if named:  # a system without memfd_create
        monkeypatch.delattr(os, "memfd_create", raising=False)
    flag = SharedFlag()
    flag.set(True)
    assert SharedFlag(os.dup(flag.descriptor)).up
    descriptor = flag.descriptor
    del flag
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
