"""The state of one upload: what is sent, what is safe, where it goes on.

Parts are numbered. What the server has not acknowledged is kept, in bounded memory, and sent
again over the next connection. Another process that has the same data can go on as well: it
makes the parts anew and compares their checksum with the server's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from hotclip import _digest
from hotclip._message import made
from hotclip._pairs import BadRow, Rows, Tolerance, invalid
from hotclip._parts import Part, Parts
from hotclip._server import Limits
from hotclip.errors import DataLoss, FailedPrecondition, HotclipError
from hotclip_proto.v1 import dataset_pb2

DATASET_INVALID = "DATASET_INVALID"
_MAX_NOTES = 64


@dataclass(frozen=True, kw_only=True)
class UploadProgress:
    """How far an upload is: what the server has safely on its disk."""

    upload: str
    """Its id, with which upload_dataset(resume=…) goes on after a break."""
    rows: int
    """Bad ones included."""
    total_rows: int | None
    """None: the data can be gone through only once, so nobody has counted."""
    images: int
    bytes: int
    """Of the messages."""
    done: bool


@dataclass(frozen=True)
class _Position:
    """What the parts up to some number hold."""

    parts: int = 0
    pairs: int = 0
    rejected: int = 0
    images: int = 0
    bytes: int = 0

    def after(self, part: Part) -> _Position:
        """With one part more."""
        return _Position(
            parts=self.parts + 1,
            pairs=self.pairs + len(part.pairs.pairs),
            rejected=self.rejected + len(part.rejected.rows),
            images=self.images + part.HasField("image"),
            bytes=self.bytes + part.ByteSize(),
        )


class UploadSession:
    """One upload over any number of connections.

    Args:
        rows: Gone through once.
        total_rows: If known.
        resume: Id of an upload that another session began; empty: a new one.
    """

    def __init__(
        self,
        name: str,
        description: str,
        rows: Rows,
        limits: Limits,
        tolerance: Tolerance,
        *,
        total_rows: int | None = None,
        resume: str = "",
    ) -> None:
        self.upload = resume
        self.dataset: dataset_pb2.Dataset | None = None
        self._name, self._description, self._tolerance = name, description, tolerance
        self._rows, self._total_rows = rows, total_rows
        self._parts = iter(Parts(rows, limits))
        self._digest = _digest.START
        # Made: to the end of what was read. Sent: over this connection, or before. Safe: on
        # the server's disk.
        self._made = self._sent = self._safe = _Position()
        # Parts that are made and not safe, with what was made up to each.
        self._pending: deque[tuple[Part, _Position]] = deque()
        self._window = 0
        self._closed = False

    def opening(self) -> Part:
        """The first message of a connection."""
        self._closed, self._window = False, 0
        return Part(
            open=made(
                dataset_pb2.DatasetOpen,
                name=self._name,
                description=self._description,
                upload=self.upload,
                max_bad_rows=self._tolerance.max_bad_rows,
                max_bad_share=self._tolerance.max_bad_share,
            )
        )

    @property
    def progress(self) -> UploadProgress:
        """What is safe by now."""
        done = self.dataset is not None
        at = self._made if done else self._safe
        return UploadProgress(
            upload=self.upload,
            rows=at.pairs + at.rejected,
            total_rows=self._total_rows,
            images=at.images,
            bytes=at.bytes,
            done=done,
        )

    @property
    def room(self) -> bool:
        """Whether something may be sent before an answer comes."""
        return not self._closed and self._sent.bytes - self._safe.bytes < self._window

    def next(self) -> Part:
        """What to send next; may read an image. After the last part comes close."""
        if self._sent.parts == self._made.parts and not self._make():
            self._closed = True
            return Part(
                close=dataset_pb2.DatasetClose(
                    pairs=self._made.pairs,
                    images=self._made.images,
                    digest=self._digest.hex(),
                    notes=list(self._rows.notes)[:_MAX_NOTES],
                )
            )
        part, self._sent = self._pending[self._sent.parts - self._safe.parts]
        return part

    def take(self, reply: dataset_pb2.UploadDatasetResponse) -> bool:
        """An answer of the server; may read images, to go on where another session ended.

        Returns:
            Whether more is safe than before.

        Raises:
            FailedPrecondition: The upload holds other data (reason UPLOAD_CHANGED).
            DataLoss: The server forgot what it had acknowledged.
            InvalidArgument: The upload is refused; its bad rows are named.
        """
        before = self._safe.parts
        match reply.WhichOneof("part"):
            case "accepted":
                self._go_on(reply.accepted)
            case "acknowledged":
                self._acknowledge(reply.acknowledged.parts)
            case "refused":
                told = reply.refused
                listed = [BadRow(row.where, row.field, row.reason) for row in told.listed]
                raise invalid(
                    self._rows.name, listed, told.bad_rows, told.rows, reason=DATASET_INVALID
                )
            case "dataset":
                self.dataset = reply.dataset
        return self.dataset is not None or self._safe.parts > before

    def name_in(self, error: HotclipError) -> None:
        """Tells the caller of an error which upload may go on."""
        if self.upload:
            error.metadata.setdefault("upload", self.upload)

    def _go_on(self, accepted: dataset_pb2.UploadAccepted) -> None:
        self.upload, self._window = accepted.upload, accepted.window_bytes
        if accepted.parts < self._safe.parts:
            raise DataLoss(
                f"upload {self.upload} has lost acknowledged parts", reason="UPLOAD_DAMAGED"
            )
        while self._made.parts < accepted.parts and self._make():
            self._acknowledge(self._made.parts)
        at_end = self._made.parts == accepted.parts
        if self._made.parts < accepted.parts or (at_end and self._digest.hex() != accepted.digest):
            raise FailedPrecondition(
                f"upload {self.upload} was begun with other data", reason="UPLOAD_CHANGED"
            )
        self._acknowledge(accepted.parts)
        self._sent = self._safe

    def _acknowledge(self, parts: int) -> None:
        while self._pending and self._pending[0][1].parts <= parts:
            _, self._safe = self._pending.popleft()

    def _make(self) -> bool:
        """Makes the next part; whether there was one."""
        part = next(self._parts, None)
        if part is None:
            return False
        self._digest = _digest.after(self._digest, part)
        self._made = self._made.after(part)
        self._pending.append((part, self._made))
        return True
