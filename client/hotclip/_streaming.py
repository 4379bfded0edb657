"""The state of one encode_stream: what was sent, what is unanswered, what comes next.

Answers come in the order of the requests. After a broken connection everything that is
unanswered is sent again, so nothing is missed and nothing comes twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hotclip._embeddings import Embeddings
from hotclip._encoding import Chunk, Options, chunks, write_request
from hotclip._inputs import may_block
from hotclip._resize import ImagePreprocessing
from hotclip._server import Limits
from hotclip._status import error_of, status_code
from hotclip._vectors import assembled
from hotclip.errors import DataLoss, InvalidArgument, ItemError, ItemsFailed
from hotclip_proto.v1 import encode_pb2

DEFAULT_BATCH = 32
# Of unanswered requests; what a stream may hold beyond the caller's own items.
MAX_PENDING_BYTES = 64 << 20
_GROUP_BYTES = 8 << 20


@dataclass(frozen=True)
class Encoded:
    """One item of a stream, in order.

    `vector` is (dim,), all zero if `error` is set (and empty if the item could not even be
    sent). Neighbours may be of different versions when a swap happens.
    """

    index: int
    vector: Embeddings
    version: str
    space_id: str
    error: ItemError | None = None


@dataclass
class _Pending:
    id: int
    chunk: Chunk

    @property
    def sent(self) -> bool:
        return bool(self.chunk.items)


class Window:
    """The requests of a stream between their sending and their answers."""

    def __init__(self, told: Options) -> None:
        self._told = told
        self._pending: deque[_Pending] = deque()
        self._next_id = 1
        self._capacity = 1  # until the server tells
        self._bytes = 0

    @property
    def empty(self) -> bool:
        """Whether everything was answered and handed out."""
        return not self._pending

    @property
    def room(self) -> bool:
        """Whether another request may be sent before an answer comes."""
        waiting = sum(p.sent for p in self._pending)
        return waiting < self._capacity and (not waiting or self._bytes < MAX_PENDING_BYTES)

    def add(self, chunk: Chunk) -> encode_pb2.EncodeStreamRequest | None:
        """Takes a chunk; gives the request to send, None if nothing of it can be sent."""
        pending = _Pending(self._next_id, chunk)
        self._next_id += 1
        self._pending.append(pending)
        self._bytes += chunk.size
        return self._request(pending) if pending.sent else None

    def unanswered(self) -> list[encode_pb2.EncodeStreamRequest]:
        """What a new connection must be sent first."""
        return [self._request(p) for p in self._pending if p.sent]

    def _request(self, pending: _Pending) -> encode_pb2.EncodeStreamRequest:
        message = encode_pb2.EncodeStreamRequest(id=pending.id)
        write_request(message.request, pending.chunk.items, self._told)
        return message

    def accept(self, reply: encode_pb2.EncodeStreamResponse) -> Iterator[Encoded]:
        """Takes a message of the server; gives the items that it answers, in order.

        Raises:
            HotclipError: The request failed as a whole; Unavailable means: connect again.
            ItemsFailed: With on_error "raise", at the first bad item.
            DataLoss: An answer to something that was not asked.
        """
        if reply.WhichOneof("event") == "limits":
            self._capacity = max(1, reply.limits.max_in_flight)
            return
        answer = reply.answer
        head = next((p for p in self._pending if p.sent), None)
        if head is None or head.id != answer.id:
            raise DataLoss(f"answer to request {answer.id} out of order", reason="STREAM_ORDER")
        if answer.WhichOneof("outcome") == "error":
            told = answer.error
            raise error_of(status_code(told.code), told.reason, told.message)
        rows, errors = head.chunk.rows(answer.response)
        yield from self.ready()
        self._pending.popleft()
        self._bytes -= head.chunk.size
        vectors = Embeddings.of_rows(
            assembled([(slice(None), rows)], len(rows)),  # a copy, so it can be written
            version=answer.response.version,
            space_id=answer.response.space_id,
            model=answer.response.model,
            text_encoder_id=answer.response.text_encoder_id,
            vision_encoder_id=answer.response.vision_encoder_id,
        )
        yield from self._hand_out(head.chunk, vectors, errors)
        yield from self.ready()

    def ready(self) -> Iterator[Encoded]:
        """Items at the head that failed before they were sent and wait for no answer."""
        while self._pending and not self._pending[0].sent:
            chunk = self._pending.popleft().chunk
            nothing = np.zeros((len(chunk), 0), dtype=np.float32)
            yield from self._hand_out(
                chunk, Embeddings(nothing, version="", space_id=""), chunk.failed
            )

    def _hand_out(
        self, chunk: Chunk, vectors: Embeddings, errors: Sequence[ItemError]
    ) -> Iterator[Encoded]:
        if errors and self._told.on_error == "raise":
            raise ItemsFailed(errors, len(chunk))
        bad = {error.index: error for error in errors}
        for index, row in enumerate(vectors, chunk.start):
            yield Encoded(index, row, vectors.version, vectors.space_id, bad.get(index))


class Group:
    """Collects the caller's items until they are worth a request.

    Attributes:
        resize: How images are resized here; None: not at all.
    """

    def __init__(self, batch_size: int) -> None:
        if batch_size < 1:
            raise InvalidArgument.field("batch_size", f"{batch_size} is less than 1")
        self._batch_size = batch_size
        self.resize: ImagePreprocessing | None = None
        self.start = 0
        self.values: list[object] = []
        self._bytes = 0

    def add(self, value: object) -> bool:
        """Takes an item; says whether the group is full."""
        self.values.append(value)
        if isinstance(value, bytes | bytearray):
            self._bytes += len(value)
        elif isinstance(value, memoryview | np.ndarray):
            self._bytes += value.nbytes
        return len(self.values) >= self._batch_size or self._bytes >= _GROUP_BYTES

    @property
    def reads(self) -> bool:
        """Whether taking the chunks may read files, fetch, compress or resize."""
        return may_block(self.values, resize=self.resize is not None)

    def chunks(self, limits: Limits) -> Iterator[Chunk]:
        """The items as requests; the group is empty as soon as the first is taken."""
        start, values = self.start, self.values
        self.start, self.values, self._bytes = start + len(values), [], 0
        yield from chunks(values, limits, start=start, resize=self.resize)
