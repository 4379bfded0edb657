from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from hotclip_server.training import ahead
from hotclip_server.training.ahead import THREADS, Ahead

PATIENCE_S = 30.0


class Decoder:
    """Tells which numbers were begun; goes on when it may."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.begins = threading.Semaphore(0)
        self.may_end = threading.Event()

    def __call__(self, number: int) -> Tensor:
        self.begun.append(number)
        self.begins.release()
        assert self.may_end.wait(PATIENCE_S)
        return torch.tensor(number)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.begins.acquire(timeout=PATIENCE_S)


def wait_until_idle() -> None:
    for thread in threading.enumerate():
        if thread.name == "hotclip-decode":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@contextmanager
def ahead_of(decoder: Decoder, waits: threading.Event) -> Iterator[Ahead]:
    images = Ahead(decoder, waits.is_set)
    try:
        yield images
    finally:
        decoder.may_end.set()
        images.want(())
        wait_until_idle()


def test_two_threads_decode_in_order_what_is_wanted():
    decoder = Decoder()
    with ahead_of(decoder, threading.Event()) as images:
        images.want([3, 1, 2])
        decoder.wait_for(THREADS)
        assert sorted(decoder.begun) == [1, 3]
        assert images.take(2) is None  # nobody has begun: who asks decodes it
        decoder.may_end.set()
        for number in (1, 3):
            found = images.take(number)
            assert found is not None
            assert int(found) == number
        assert images.take(9) is None
    assert sorted(decoder.begun) == [1, 3]


def test_begins_nothing_while_somebody_waits_and_goes_on_when_it_is_asked_afterwards():
    decoder, waits = Decoder(), threading.Event()
    decoder.may_end.set()
    with ahead_of(decoder, waits) as images:
        waits.set()
        images.want([0, 1])
        assert images.take(0) is None
        wait_until_idle()
        assert decoder.begun == []
        waits.clear()
        assert images.take(7) is None
        decoder.wait_for(1)
        found = images.take(1)
        assert found is not None
        assert int(found) == 1
    assert decoder.begun == [1]


def test_stops_after_the_image_that_is_under_way_when_somebody_begins_to_wait():
    decoder, waits = Decoder(), threading.Event()
    with ahead_of(decoder, waits) as images:
        images.want(range(8))
        decoder.wait_for(THREADS)
        waits.set()
        decoder.may_end.set()
        wait_until_idle()
        assert sorted(decoder.begun) == [0, 1]


def test_who_takes_it_is_told_of_an_error():
    begun = threading.Event()

    def fail(_: int) -> Tensor:
        begun.set()
        raise ValueError("torn")

    images = Ahead(fail, lambda: False)
    images.want([0])
    assert begun.wait(PATIENCE_S)
    with pytest.raises(ValueError, match="torn"):
        images.take(0)
    wait_until_idle()


def test_what_is_taken_costs_the_same_however_much_is_wanted(monkeypatch: pytest.MonkeyPatch):
    looked: list[Future[Tensor]] = []
    is_due = ahead._is_due

    def counted(future: Future[Tensor]) -> bool:
        looked.append(future)
        return is_due(future)

    monkeypatch.setattr(ahead, "_is_due", counted)
    decoder, wanted = Decoder(), 300
    with ahead_of(decoder, threading.Event()) as images:
        images.want(range(wanted))
        decoder.wait_for(THREADS)
        for number in range(THREADS, wanted):
            assert images.take(number) is None
        decoder.may_end.set()
        for number in range(THREADS):
            assert images.take(number) is not None
        wait_until_idle()
        assert len(looked) <= 2 * wanted
    assert len(decoder.begun) == THREADS


ENDING = r"""
import os, threading, time
from hotclip_server.training.ahead import Ahead

begun = threading.Semaphore(0)

def decode(number):
    begun.release()
    threading.main_thread().join()
    time.sleep(0.2)  # the interpreter ends meanwhile, if it does not wait
    os.write(1, b"decoded %d\n" % number)  # at once: two threads write

Ahead(decode, lambda: False).want(range(8))
begun.acquire()
begun.acquire()
"""


def test_a_process_that_ends_waits_for_what_is_under_way_and_for_no_more():
    done = subprocess.run(
        [sys.executable, "-c", ENDING], stdout=subprocess.PIPE, check=True, text=True, timeout=60
    )
    assert sorted(done.stdout.splitlines()) == ["decoded 0", "decoded 1"]
