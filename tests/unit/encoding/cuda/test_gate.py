"""Captures and dropout keep out of each other's way, and neither starves."""

import threading
import time

from hotclip_server.encoding.cuda.gate import CaptureGate


def test_one_or_the_other() -> None:
    gate = CaptureGate()
    assert gate.try_begin()
    entered = threading.Event()

    def draw() -> None:
        with gate.drawing():
            entered.set()

    thread = threading.Thread(target=draw)
    thread.start()
    assert not entered.wait(0.05)
    gate.end()
    assert entered.wait(5)
    thread.join()
    with gate.drawing(), gate.drawing():
        assert not gate.try_begin()
    assert gate.try_begin()


def test_a_training_lets_a_capture_go_first_that_was_turned_away() -> None:
    gate = CaptureGate()
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            with gate.drawing():
                time.sleep(0.002)

    thread = threading.Thread(target=train)
    thread.start()
    began = 0
    for _ in range(1000):
        if gate.try_begin():
            gate.end()
            began += 1
            if began == 5:
                break
        time.sleep(0.0005)
    stop.set()
    thread.join()
    assert began == 5


def test_a_training_does_not_wait_for_one_that_never_comes() -> None:
    gate = CaptureGate()
    with gate.drawing():
        assert not gate.try_begin()
    with gate.drawing():
        assert not gate.try_begin()
