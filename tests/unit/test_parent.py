"""A process that ends with the one that began it."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

CHILD = """
import os, signal, sys
from hotclip_server.parent import end_with
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
end_with(int(sys.argv[1]))
print(os.getpid(), flush=True)
while True:  # it looks for nobody
    pass
"""
PARENT = """
import os, subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1], str(os.getpid())])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a parent's death")
def test_it_ends_with_its_parent_whatever_it_is_at() -> None:
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        gone, _ = psutil.wait_procs([child], timeout=60)
    assert gone == [child]


def test_it_does_not_begin_without_its_parent() -> None:
    command = [sys.executable, "-c", CHILD, "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == ("", "the process that began this one is gone\n")
