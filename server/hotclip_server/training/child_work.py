"""A fine-tune in a supervised process: what it breaks is not the server.

The process does all that computes and asks this side for everything that concerns the job: one
message, one answer. If it dies, another one goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hotclip_server import errors
from hotclip_server.errors import HotclipError
from hotclip_server.jobs.context import Cancelled, Interrupted, JobContext
from hotclip_server.jobs.specs import FineTuneSpec
from hotclip_server.training.background import Background, threads_of
from hotclip_server.training.finetune_work import Made, Work, Workplace
from hotclip_server.training.frames import CALLS, Connection

log = logging.getLogger(__name__)

LIVES = 3
"""Processes that a job may use up within one attempt."""
LOOK_S = 0.25
PATIENCE_S = 30.0
"""After a wish to end, a process that says nothing for so long is killed."""
TRAINER_DEFAULTS = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""Variables of its process, unless they are set. Each step takes the same memory again; what glibc
gives back to the system in between (mallopt(3)) must be cleared anew. The server itself, which is
to hold little, has none of this."""
_BY_CODE: dict[int, type[HotclipError]] = {
    kind.code.value[0]: kind
    for kind in (
        *(errors.InvalidArgument, errors.NotFound, errors.FailedPrecondition, errors.DataLoss),
        *(errors.ResourceExhausted, errors.Unavailable, errors.Unimplemented, HotclipError),
    )
}


class TrainerDied(HotclipError):
    """The training process ended without a result, again and again."""

    default_reason = "TRAINER_DIED"


class _Died(Exception):
    """This one ended without a result; the message says how."""


@contextmanager
def child_work(place: Workplace, job: JobContext, spec: FineTuneSpec) -> Iterator[Work]:
    """A fine-tune in a process, which ends with the context."""
    work = ChildWork(place, job, spec)
    try:
        yield work
    finally:
        work.close()


class ChildWork:
    """Implements `Work`; on the thread of the job."""

    def __init__(self, place: Workplace, job: JobContext, spec: FineTuneSpec) -> None:
        self._place = place
        self._job = job
        self._spec = spec
        self._lives = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return self._process.pid if self._process is not None else None

    def make(self) -> Made:
        """See `Work`."""
        return Made(**self._insist({"do": "make"}))

    def score_of(self, version: str) -> float:
        """See `Work`."""
        score: float = self._insist({"do": "score_of", "version": version})["score"]
        return score

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()  # end of file: nothing more to do
        if process is not None:
            try:
                process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _insist(self, order: dict[str, Any]) -> dict[str, Any]:
        while True:
            try:
                return self._ask(order)
            except _Died as death:
                self.close()
                self._job.check_cancelled()
                if self._lives >= LIVES:
                    raise TrainerDied(f"the training process died: {death}") from death
                self._job.restarts += 1
                self._job.log(f"the training process died ({death}); another goes on", "WARNING")

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        connection = self._connected()
        try:
            connection.send(order)
            while True:
                self._wait(connection)
                message = connection.receive()
                if "call" in message:
                    connection.send(self._do(message))
                elif "done" in message:
                    done: dict[str, Any] = message["done"]
                    return done
                elif "stopped" in message:
                    raise Cancelled if message["stopped"] == "cancelled" else Interrupted
                else:
                    raise _error(**message["error"])
        except ConnectionError as error:
            raise _Died(self._how_it_ended()) from error

    def _wait(self, connection: Connection) -> None:
        """Until there is a message, keeping the process at its share of the processor."""
        silent_since: float | None = None
        while not connection.ready(LOOK_S):
            self._keep_share()
            if not (self._job.cancelled or self._job.stopping):
                continue
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE_S and self._process is not None:
                self._process.kill()
                told = f"the training process said nothing for {PATIENCE_S:g} s and was killed"
                self._job.log(told, "WARNING")
                self._job.check_cancelled()

    def _do(self, message: dict[str, Any]) -> dict[str, Any]:
        stop = ""
        self._job.yielding.yielded_s = message["yielded_s"]
        if message["call"] not in CALLS:
            raise RuntimeError(f"the training process asks for {message['call']}. This is a bug.")
        try:
            getattr(self._job, message["call"])(*message["args"], **message["kwargs"])
        except Cancelled:
            stop = "cancelled"
        except Interrupted:
            stop = "interrupted"
        self._keep_share()
        return {"stop": stop}

    def _keep_share(self) -> None:
        """Of the processor; who wishes to end does so at once."""
        if self._job.cancelled or self._job.stopping:
            self._background.release()
        else:
            self._background.tick()

    def _connected(self) -> Connection:
        if self._connection is not None:
            return self._connection
        place, roots, waiting = self._place, self._place.roots, self._place.waiting
        if roots is None or waiting is None:
            raise RuntimeError("a process needs files to read and a flag. This is a bug.")
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "hotclip_server.training.child"),
                    f"--fd={theirs.fileno()}",
                    f"--parent={os.getpid()}",
                ],
                pass_fds=(theirs.fileno(), waiting.descriptor),
                stdin=subprocess.DEVNULL,
                env={**TRAINER_DEFAULTS, **os.environ, "OMP_WAIT_POLICY": "passive"},
                # A group, not a session: Linux may divide processors among sessions first, and then
                # the low weight of its threads would count within its own alone (sched(7)).
                process_group=0,
            )
        self._lives += 1
        pid = self._process.pid
        self._background = Background(
            lambda: threads_of(pid) if place.device == "cpu" else [], lowly=True
        )
        self._connection = Connection(ours)
        self._connection.send(
            {
                "job": self._job.id,
                "waiting": waiting.descriptor,
                "yielded_s": self._job.yielded_s,
                "spec": self._spec.to_json(),
                "versions": str(roots.versions),
                "datasets": str(roots.datasets),
                "folders": str(place.folders),
                "device": place.device,
                "threads": place.threads,
                "min_free_disk_bytes": place.min_free_disk_bytes,
                "every_s": place.every_s,
            }
        )
        return self._connection

    def _how_it_ended(self) -> str:
        if self._process is None:
            return "it was not there"
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _error(code: int, reason: str, message: str) -> HotclipError:
    return _BY_CODE.get(code, HotclipError)(message, reason=reason)
