"""Where processor time goes."""

import os
import threading
import time
from pathlib import Path

import pytest

from benchmarks.profile import LOOP, MODEL, OTHER, PREPARING, shares, thread_seconds


def test_time_goes_to_the_kind_of_its_thread() -> None:
    before = {1: ("python", 1.0), 2: ("python", 0.0), 3: ("python", 5.0)}
    after = {
        1: ("python", 2.0),  # the loop
        2: ("python", 3.0),  # the device
        3: ("python", 10.0),  # OpenMP: Python does not know it
        4: ("python", 0.5),  # prepares; younger than the first look
        5: ("grpc_global_tim", 0.25),
        6: ("jemalloc_bg", 0.25),
    }
    names = {1: "MainThread", 2: "hotclip-device_0", 4: "hotclip-prepare_3"}
    found = shares(before, after, names)
    assert list(found) == [MODEL, LOOP, PREPARING, OTHER]
    assert found == pytest.approx({MODEL: 0.8, LOOP: 0.125, PREPARING: 0.05, OTHER: 0.025})
    assert shares(before, before, names) == {}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are read from Linux")
def test_the_kernel_tells_how_long_each_thread_ran() -> None:
    def work() -> None:
        ids.append(threading.get_native_id())
        while not end.is_set():
            sum(range(1000))

    ids: list[int] = []
    end = threading.Event()
    thread = threading.Thread(target=work)
    before = thread_seconds(os.getpid())
    thread.start()
    time.sleep(0.3)
    after = thread_seconds(os.getpid())
    end.set()
    thread.join()
    assert ids[0] not in before
    assert after[ids[0]][1] > 0
