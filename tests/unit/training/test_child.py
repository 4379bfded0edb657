"""What the process of a fine-tune asks the server, and what it knows by itself."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hotclip_server.jobs.context import Cancelled, JobContext
from hotclip_server.shared_flag import SharedFlag
from hotclip_server.training import child_work
from hotclip_server.training.child import DatasetFolders, RemoteJob
from hotclip_server.training.finetune_work import Roots, Workplace
from hotclip_server.training.frames import Connection
from hotclip_server.training.lazy_pairs import in_pieces
from tests.unit.training.test_finetune_job import Shelf, spec


class Server:
    """Answers what is asked, until it is told to be gone."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.asked: list[dict[str, Any]] = []
        self.stop = ""
        self.waiting = SharedFlag()
        self._end = ours
        self.connection = Connection(theirs)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def job(self, yielded_s: float = 0.0) -> RemoteJob:
        return RemoteJob(self.connection, "job", self.waiting, yielded_s)

    def gone(self) -> None:
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._end.close()

    def _run(self) -> None:
        connection = Connection(self._end)
        with suppress(ConnectionError):
            while True:
                self.asked.append(connection.receive())
                # Metrics are taken of a job that was cancelled too; see `JobContext`.
                asked = self.asked[-1]["call"] == "check_cancelled"
                connection.send({"stop": self.stop if asked else ""})


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.gone()
    server.connection.close()


def work(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pass


def test_it_asks_now_and_then_and_not_for_every_layer(server: Server) -> None:
    job = server.job()
    calls = 0
    while len(server.asked) < 2:
        work(0.0001)
        job.yield_to_serving()
        calls += 1
    assert [one["call"] for one in server.asked] == ["check_cancelled"] * 2
    assert calls > 20
    assert job.yielded_s == 0


def test_it_asks_also_if_it_tells_of_a_step_more_often(server: Server) -> None:
    job = server.job()
    server.stop = "cancelled"

    def steps() -> None:
        for step in range(200):
            job.metric("STEP", {}, step=step)
            job.check_cancelled()
            work(0.01)

    with pytest.raises(Cancelled):
        steps()


def test_a_pause_is_its_own_and_is_told_of(server: Server) -> None:
    job = server.job(yielded_s=5.0)
    server.waiting.set(True)
    work(0.02)
    job.yield_to_serving()
    assert job.yielded_s > 5.1
    job.log("a pause is over")
    assert server.asked[-1]["yielded_s"] == job.yielded_s
    assert server.asked[-1]["args"] == ["a pause is over"]


@pytest.mark.parametrize(
    ("happens", "error"),
    [
        (lambda server: setattr(server, "stop", "cancelled"), Cancelled),
        (Server.gone, ConnectionError),
    ],
    ids=["cancelled", "gone"],
)
def test_a_pause_ends_when_there_is_no_more_to_do(
    server: Server, happens: Callable[[Server], None], error: type[Exception]
) -> None:
    job = server.job()
    server.waiting.set(True)
    work(0.1)
    job.log("it is asked again only after a while")
    happens(server)
    with pytest.raises(error):
        job.yield_to_serving()  # it would wait for 0.9 s, and return


def test_it_has_all_that_the_code_which_trains_wants_of_a_job(server: Server) -> None:
    job = server.job()
    public = {name for name in vars(JobContext) if not name.startswith("_")}
    # Those are of the server's side of a job, and of handlers that train nothing.
    apart = {"cancelled", "stopping", "flush", "delivered"}
    assert {name for name in public - apart if not hasattr(job, name)} == set()
    with pytest.raises(AttributeError, match="can't ask its job for anything"):
        _ = job.anything
    job.give_way()
    assert server.asked == []


def test_who_gives_way_ends_when_it_is_asked_to(server: Server) -> None:
    job = server.job()
    server.stop = "cancelled"
    with pytest.raises(Cancelled):
        for _ in in_pieces(itertools.count(), job.give_way):
            pass
    assert {one["call"] for one in server.asked} == {"check_cancelled"}


def test_a_process_that_says_nothing_is_killed_when_it_is_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin, told = subprocess.Popen, list[str]()

    def begin_silent(_: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return begin([sys.executable, "-c", "import time; time.sleep(1000)"], **options)

    def check_cancelled() -> None:
        raise Cancelled

    monkeypatch.setattr(child_work, "PATIENCE_S", 0.1)
    monkeypatch.setattr(child_work.subprocess, "Popen", begin_silent)
    job: Any = SimpleNamespace(
        id="job",
        cancelled=True,
        stopping=False,
        yielded_s=0.0,
        log=lambda line, level: told.append(line),
        check_cancelled=check_cancelled,
    )
    place = Workplace(
        versions=Shelf({}),
        datasets=DatasetFolders(tmp_path),
        folders=tmp_path,
        roots=Roots(versions=tmp_path, datasets=tmp_path),
        waiting=SharedFlag(),
    )
    with child_work.child_work(place, job, spec()) as work:
        assert isinstance(work, child_work.ChildWork)
        with pytest.raises(Cancelled):
            work.make()
        process = work._process
    assert told == ["the training process said nothing for 0.1 s and was killed"]
    assert process is not None
    assert process.returncode == -signal.SIGKILL
