"""Following a job's events over broken connections: nothing missed, nothing doubled."""

from __future__ import annotations

from hotclip._jobs import JobEvent, StateChange, job_event
from hotclip._message import made
from hotclip._reconnect import Attempts
from hotclip.errors import DataLoss, HotclipError, Unavailable
from hotclip_proto.v1 import job_pb2


class EventCursor:
    """Where a reader of events is, and whether what arrives fits."""

    def __init__(self, job: str, after_seq: int) -> None:
        self._job = job
        self.seq = after_seq
        self.ended = False
        self._attempts = Attempts()

    def request(self) -> job_pb2.WatchJobRequest:
        """What to ask a new connection."""
        return made(job_pb2.WatchJobRequest, job=self._job, after_seq=self.seq)

    def accept(self, message: job_pb2.JobEvent) -> JobEvent | None:
        """Takes a message; gives the event, or None if it was here before.

        Raises:
            DataLoss: An event is missing.
        """
        self._attempts.progressed()
        if message.seq <= self.seq:
            return None
        if message.seq != self.seq + 1:
            raise DataLoss(
                f"event {message.seq} of job {self._job} follows {self.seq}", reason="EVENT_GAP"
            )
        self.seq = message.seq
        event = job_event(message)
        if isinstance(event.detail, StateChange):
            self.ended = event.detail.state.ended
        return event

    def broken(self, error: HotclipError) -> float:
        """Seconds to wait before connecting again; raises what does not pass."""
        return self._attempts.pause(error)

    def finished(self) -> float | None:
        """After the server ended the stream: None if the job ended, else as `broken`."""
        if self.ended:
            return None
        return self.broken(Unavailable("the server ended the stream", reason="STREAM_ENDED"))
