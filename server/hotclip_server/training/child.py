"""`python -m hotclip_server.training.child`: the process of one fine-tune with isolation PROCESS.

Runs the same `LocalWork` as a thread of the server would, for a job that is at the other end of an
inherited socket. Ends when the server does, whatever it is at: with the little of the processor
that it may get, a step can take long. On a CPU the server gives it what is left over: its
threads take the class of the one that begins them, and it pauses while a bit that it shares with
the server says that somebody waits.
"""

from __future__ import annotations

import argparse
import fcntl
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.jobs.context import Cancelled, Interrupted
from hotclip_server.jobs.failures import job_error
from hotclip_server.jobs.specs import FineTuneSpec
from hotclip_server.jobs.yielding import Yielding
from hotclip_server.models.store import VersionStore
from hotclip_server.parent import end_with
from hotclip_server.shared_flag import SharedFlag
from hotclip_server.training.finetune_work import Workplace, local_work
from hotclip_server.training.frames import CALLS, Connection

ASK_S = 0.1
"""Least time between two questions whether to go on: each one takes the server's interpreter."""


class RemoteJob:
    """The job as the training code sees it; see `JobContext`. Its methods run in the server, all
    but those that are called most.

    Args:
        waiting: Whether anybody waits for the device.
        yielded_s: Seconds that processes before this one waited for serving.
    """

    def __init__(
        self, connection: Connection, job_id: str, waiting: SharedFlag, yielded_s: float
    ) -> None:
        self.id = job_id
        self.yielding = Yielding(lambda: waiting.up)
        self.yielding.yielded_s = yielded_s
        self._connection = connection
        self._asked = time.monotonic()

    @property
    def yielded_s(self) -> float:
        """See `JobContext`."""
        return self.yielding.yielded_s

    def check_cancelled(self) -> None:
        """See `JobContext`; also raises ConnectionError if the server is gone."""
        if time.monotonic() - self._asked >= ASK_S:
            self._asked = time.monotonic()  # no other call tells
            self._call("check_cancelled")

    def yield_to_serving(self) -> None:
        """See `JobContext`. Raises as `check_cancelled` does, whether it waits or not."""
        self.check_cancelled()
        self.yielding(self.check_cancelled)

    def give_way(self) -> None:
        """See `JobContext`."""
        self.yield_to_serving()

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            raise AttributeError(f"a training process can't ask its job for {name}")
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._connection.send(
            {"call": name, "args": args, "kwargs": kwargs, "yielded_s": self.yielded_s}
        )
        answer = self._connection.receive()
        if answer["stop"] == "cancelled":
            raise Cancelled
        if answer["stop"] == "interrupted":
            raise Interrupted


class DatasetFolders:
    """Implements `Datasets` on the files alone."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self, dataset_id: str) -> StoredDataset:
        """See `Datasets`."""
        return StoredDataset(self._root / dataset_id)


def serve(connection: Connection) -> None:
    """Does what it is told until nobody is there. Raises ConnectionError then."""
    told = connection.receive()
    folders = Path(told["folders"])
    place = Workplace(
        versions=VersionStore(Path(told["versions"])),
        datasets=DatasetFolders(Path(told["datasets"])),
        folders=folders,
        device=told["device"],
        threads=told["threads"],
        min_free_disk_bytes=told["min_free_disk_bytes"],
        every_s=told["every_s"],
        cooperates=False,  # its parent sees to that
    )
    waiting = SharedFlag(told["waiting"])
    job = RemoteJob(connection, told["job"], waiting, told["yielded_s"])
    folder = folders / job.id
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        # The process of a server that was killed may still be at work.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _work(connection, place, job, FineTuneSpec.from_json(told["spec"]))


def _work(connection: Connection, place: Workplace, job: RemoteJob, spec: FineTuneSpec) -> None:
    order = connection.receive()  # first: what prepares the work may speak to the job already
    try:
        with local_work(place, job, spec) as work:  # type: ignore[arg-type]  # see RemoteJob
            while True:
                if order["do"] == "make":
                    answer: Mapping[str, Any] = asdict(work.make())
                else:
                    answer = {"score": work.score_of(order["version"])}
                connection.send({"done": answer})
                order = connection.receive()
    except Cancelled:
        connection.send({"stopped": "cancelled"})
    except Interrupted:
        connection.send({"stopped": "interrupted"})
    except ConnectionError:
        raise
    except Exception as error:  # the server raises it
        connection.send({"error": asdict(job_error(error))})
        raise


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    end_with(arguments.parent)
    # The server ends this process in order; signals of a terminal or of a service manager reach
    # both.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(ConnectionError):  # the server has no more work for it, or has gone
        serve(Connection(socket.socket(fileno=arguments.fd)))


if __name__ == "__main__":
    main()
