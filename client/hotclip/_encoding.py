"""Building Encode requests and putting their answers together; no waiting, no network.

A list longer than one request may be is cut into chunks. The first answer pins the
version of the others; if that version is gone before the last, all starts again, so that
the array is wholly of one version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from hotclip._embeddings import Embeddings, Timings
from hotclip._inputs import is_single, item_of, may_block
from hotclip._resize import ImagePreprocessing, require_pillow
from hotclip._server import Limits, ServerInfo
from hotclip._status import item_errors, placed
from hotclip._vectors import Rows, assembled, unpack, wire_dtype
from hotclip.errors import (
    DataLoss,
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
    ItemError,
    ItemsFailed,
    NotFound,
    SpaceMismatch,
)
from hotclip_proto.v1 import encode_pb2, types_pb2

OnError: TypeAlias = Literal["raise", "return"]
PriorityName: TypeAlias = Literal["interactive", "bulk"]
TruncateName: TypeAlias = Literal["end", "start", "none"]
ResizeName: TypeAlias = Literal["server", "client"]

MAX_RESTARTS = 5
PREPROCESSING_CHANGED = "PREPROCESSING_CHANGED"
DEFAULT_MODEL = "default"
MAX_DIMENSIONS = 2**32 - 1
# Left of a message for everything but the items themselves.
_MESSAGE_MARGIN = 64 << 10
# Tags and lengths around one item; more than protobuf ever needs.
_ITEM_MARGIN = 32

_PRIORITIES = {
    "interactive": types_pb2.PRIORITY_INTERACTIVE,
    "bulk": types_pb2.PRIORITY_BULK,
}
_TRUNCATIONS = {
    "end": types_pb2.TRUNCATION_END,
    "start": types_pb2.TRUNCATION_START,
    "none": types_pb2.TRUNCATION_NONE,
}


@dataclass(frozen=True)
class Options:
    """What an Encode request says besides its items."""

    model: str
    version: str
    expected_space_id: str
    dtype: types_pb2.DType.ValueType
    priority: types_pb2.Priority.ValueType
    on_error: OnError
    raw_features: bool
    dimensions: int
    truncate: types_pb2.Truncation.ValueType
    resize: bool
    """Whether images are resized here."""


def options(
    *,
    model: str,
    version: str,
    expected_space_id: str,
    dtype: DTypeLike,
    dimensions: int | None,
    normalize: bool,
    truncate: TruncateName,
    priority: PriorityName,
    on_error: OnError,
    resize: ResizeName,
) -> Options:
    """Checks and packs the keywords of encode and encode_stream."""
    if resize not in ("server", "client"):
        raise InvalidArgument.field("resize", f"{resize!r} is no server or client")
    if resize == "client":
        require_pillow()
    if on_error not in ("raise", "return"):
        raise InvalidArgument.field("on_error", f"{on_error!r} is no raise or return")
    return Options(
        model,
        version,
        expected_space_id,
        wire_dtype(dtype),
        priority_of(priority),
        on_error,
        not normalize,
        0 if dimensions is None else _dimensions(dimensions),
        truncation_of(truncate),
        resize == "client",
    )


def _dimensions(told: int) -> int:
    # What a caller without a type checker passes may be anything.
    number = isinstance(told, int | np.integer) and not isinstance(told, bool)
    if not number or not 1 <= told <= MAX_DIMENSIONS:
        reason = f"{told!r} is no whole number from 1 to {MAX_DIMENSIONS}"
        raise InvalidArgument.field("dimensions", reason)
    return int(told)


def preprocessing_of(
    told: Options, info: ServerInfo, version: str = ""
) -> ImagePreprocessing | None:
    """How images are resized here; None: not at all, or the server does not say how.

    Args:
        version: That answers; empty: the one that was asked for, else the live one, or
            another of the model if that is of the expected space.
    """
    if not told.resize:
        return None
    version = told.version or version
    if version:
        able = [v for v in info.versions if v.version == version]
        if told.model:
            able = [v for v in able if v.model == told.model]
    else:
        able = [v for v in info.versions if v.model == (told.model or DEFAULT_MODEL)]
        if not told.expected_space_id:
            able = [v for v in able if v.live]
        else:
            # A space of fewer dimensions is listed of no version; any may be meant.
            able = [v for v in able if v.space_id == told.expected_space_id] or able
    ways = {v.image_preprocessing for v in able}
    way = ways.pop() if len(ways) == 1 else None
    return way if way is not None and way.id else None


def priority_of(priority: PriorityName) -> types_pb2.Priority.ValueType:
    """The wire's name."""
    if priority not in _PRIORITIES:
        raise InvalidArgument.field("priority", f"{priority!r} is no interactive or bulk")
    return _PRIORITIES[priority]


def truncation_of(truncate: TruncateName) -> types_pb2.Truncation.ValueType:
    """The wire's name."""
    if truncate not in _TRUNCATIONS:
        raise InvalidArgument.field("truncate", f"{truncate!r} is no end, start or none")
    return _TRUNCATIONS[truncate]


def write_request(
    request: encode_pb2.EncodeRequest,
    items: Sequence[types_pb2.EncodeItem],
    told: Options,
    pin: str = "",
) -> encode_pb2.EncodeRequest:
    """Fills one Encode request; `pin` is used if the caller pins no version."""
    request.items.extend(items)
    request.model, request.version = told.model, told.version or pin
    request.expected_space_id = told.expected_space_id
    request.dtype, request.priority = told.dtype, told.priority
    request.raw_features, request.dimensions = told.raw_features, told.dimensions
    request.truncate = told.truncate
    return request


@dataclass
class Chunk:
    """Neighbouring items that go into one request; some may have failed right here."""

    start: int
    """Position of the first in the caller's list."""
    items: list[types_pb2.EncodeItem] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Positions of `items` within the chunk."""
    failed: list[ItemError] = field(default_factory=list)
    """Items that could not be read; `index` counts in the caller's list."""
    size: int = 0
    """Bytes of `items`."""

    def __len__(self) -> int:
        return len(self.positions) + len(self.failed)

    def rows(self, reply: encode_pb2.EncodeResponse) -> tuple[Rows, list[ItemError]]:
        """len(self) vectors and errors of an answer; rows of failed items are zero."""
        got = unpack(reply.vectors)
        if len(got) != len(self.items):
            raise DataLoss(f"{len(got)} vectors for {len(self.items)} items", reason="VECTOR_COUNT")
        errors = list(self.failed)
        bad = item_errors(reply.errors)
        for error in bad:
            index = self.start + self.positions[error.index]
            errors.append(placed(error, index))
        errors.sort(key=lambda e: e.index)
        got = got.without(error.index for error in bad)
        return (got.placed(self.positions, len(self)) if self.failed else got), errors


def chunks(
    values: Iterable[object],
    limits: Limits,
    *,
    start: int = 0,
    resize: ImagePreprocessing | None = None,
) -> Iterator[Chunk]:
    """Cuts inputs into chunks by items and bytes; reads each item when its turn comes.

    Raises:
        InvalidArgument: An input of the wrong type; its field is items[position].
    """
    room = max(limits.max_message_bytes - _MESSAGE_MARGIN, 1)
    chunk = Chunk(start)
    for index, value in enumerate(values, start):
        item = _read(value, index, limits, resize)
        size = 0 if isinstance(item, ItemError) else item.ByteSize() + _ITEM_MARGIN
        if len(chunk) and (len(chunk) >= limits.max_items_per_request or chunk.size + size > room):
            yield chunk
            chunk = Chunk(index)
        if isinstance(item, ItemError):
            chunk.failed.append(item)
        else:
            chunk.positions.append(index - chunk.start)
            chunk.items.append(item)
            chunk.size += size
    if len(chunk):
        yield chunk


def _read(
    value: object, index: int, limits: Limits, resize: ImagePreprocessing | None
) -> types_pb2.EncodeItem | ItemError:
    try:
        item = item_of(value, f"items[{index}]", resize)
    except InvalidArgument as error:
        if error.reason == "ITEM_TYPE":
            raise
        return ItemError(index, error.code, error.reason, error.message)
    return too_large(item, index, limits) or item


def too_large(item: types_pb2.EncodeItem, index: int, limits: Limits) -> ItemError | None:
    """Why an item is not sent, for the whole request would be refused with it."""
    kind, size, most = "TEXT_TOO_LONG", len(item.text.encode()), limits.max_text_bytes
    if not item.text:
        kind, size = "IMAGE_TOO_LARGE", len(item.image) or len(item.tensor.data)
        most = min(limits.max_image_bytes, limits.max_message_bytes - _MESSAGE_MARGIN)
    if size <= most:
        return None
    return ItemError(index, InvalidArgument.code, kind, f"{size} bytes, {most} are allowed")


class EncodePlan:
    """One encode call: the requests to send, one after another, and what came back.

    Attributes:
        resize: How images are resized here; None: not at all.
        answered_by: Version of the last answer.
    """

    def __init__(
        self,
        values: object,
        told: Options,
        limits: Limits,
        resize: ImagePreprocessing | None = None,
    ) -> None:
        self.resize = resize
        self.answered_by = ""
        self.single = is_single(values)
        if self.single:
            self._values: list[object] = [values]
        elif isinstance(values, Iterable):
            self._values = list(values)
        else:
            raise InvalidArgument.field("items", f"{type(values).__name__} is no list of items")
        if not self._values:
            raise InvalidArgument.field("items", "empty list")
        self._told, self._limits = told, limits
        self._restarts = 0
        self._begin()

    def _begin(self) -> None:
        self._pin = self._space = self._model = ""
        self._encoders = ("", "")
        self._timings = Timings()
        self._rows: list[tuple[slice, Rows]] = []
        self._errors: list[ItemError] = []

    @property
    def reads(self) -> bool:
        """Whether taking the next chunk may read files, fetch, compress or resize."""
        return may_block(self._values, resize=self._told.resize)

    def chunks(self) -> Iterator[Chunk]:
        """The chunks that have something to send, from the first on."""
        for chunk in chunks(self._values, self._limits, resize=self.resize):
            if chunk.items:
                yield chunk
            else:
                self._errors += chunk.failed

    def request(self, chunk: Chunk) -> encode_pb2.EncodeRequest:
        """The chunk's request, pinned to the version of the first answer."""
        return write_request(encode_pb2.EncodeRequest(), chunk.items, self._told, self._pin)

    def add(self, chunk: Chunk, reply: encode_pb2.EncodeResponse) -> None:
        """Takes the answer to a chunk.

        Raises:
            FailedPrecondition: Images were resized as for another version; see restart.
        """
        self.answered_by = reply.version
        changed = [e.index for e in reply.errors if e.reason == PREPROCESSING_CHANGED]
        if any(self._resized(chunk.items[index]) for index in changed):
            raise FailedPrecondition(
                "images were resized for another version", reason=PREPROCESSING_CHANGED
            )
        if self._pin and reply.version != self._pin:
            raise DataLoss(
                f"asked for version {self._pin}, got {reply.version}", reason="VERSION_MIXED"
            )
        rows, errors = chunk.rows(reply)
        self._pin, self._space, self._model = reply.version, reply.space_id, reply.model
        self._encoders = reply.text_encoder_id, reply.vision_encoder_id
        self._timings = self._timings.plus(reply.timings)
        self._rows.append((slice(chunk.start, chunk.start + len(rows)), rows))
        self._errors += errors

    def _resized(self, item: types_pb2.EncodeItem) -> bool:
        """Whether it may be other the next time; what the caller made stays as it is."""
        return self.resize is not None and item.tensor.preprocessing_id == self.resize.id

    def restart(self, error: HotclipError) -> None:
        """Starts again if `error` says that the version of the first answer is gone, or that
        images were resized as for another one.

        Raises:
            HotclipError: `error`, if it says something else, or after MAX_RESTARTS.
        """
        gone = isinstance(error, NotFound | FailedPrecondition)
        ours = self._pin and not self._told.version and not isinstance(error, SpaceMismatch)
        resized = error.reason == PREPROCESSING_CHANGED
        if not (resized or (gone and ours)) or self._restarts >= MAX_RESTARTS:
            raise error
        self._restarts += 1
        self._begin()

    def result(self) -> Embeddings:
        """The whole array: (n, dim), or (dim,) for a single item.

        Raises:
            ItemsFailed: With on_error "raise" if any item failed; always if no item
                could even be sent.
        """
        errors = sorted(self._errors, key=lambda e: e.index)
        total = len(self._values)
        if not self._rows or (errors and self._told.on_error == "raise"):
            raise ItemsFailed(errors, total)
        whole = assembled(self._rows, total)  # chunks of which nothing was sent stay zero
        vectors = Embeddings.of_rows(
            whole,
            version=self._pin,
            space_id=self._space,
            model=self._model,
            text_encoder_id=self._encoders[0],
            vision_encoder_id=self._encoders[1],
        )
        if self.single:
            vectors = vectors[0]
        vectors.errors, vectors.timings = tuple(errors), self._timings
        return vectors
