"""What points were made of: rows of the database, large ones as files, and encoding them anew."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.batching.ticket import Priority
from hotclip_server.errors import DataLoss, FailedPrecondition, HotclipError, Unavailable
from hotclip_server.models.residents import Pin
from hotclip_server.search.blobs import BlobHold, SourceBlobs
from hotclip_server.search.encoding import ItemEncoder, Versions
from hotclip_server.search.points import NewPoint
from hotclip_server.search.protocol import PointMeta
from hotclip_server.search.records import SourceRow

_INLINE_BYTES = 32 << 10
"""Smaller items lie in the row itself: a file each would cost two waits for the disk."""
_ENCODE_ROWS = 128
_ENCODE_BYTES = 64 << 20
_BLOB_BYTES = 4 << 20
"""What a blob is taken for: a large photograph."""


class Sources:
    """Rows of points, and their vectors. Event loop only, unless said otherwise."""

    def __init__(
        self,
        versions: Versions,
        encoder: ItemEncoder,
        blobs: SourceBlobs,
        *,
        max_items: int = 1024,
    ) -> None:
        self._versions = versions
        self._encoder = encoder
        self._blobs = blobs
        self._rows_at_once = min(_ENCODE_ROWS, max_items)

    async def pin(self, model: str, version: str) -> Pin:
        """Holds a version that a collection writes for. Raises FailedPrecondition."""
        try:
            return self._versions.pin(model, version)
        except FailedPrecondition:
            # After a restart a rollback target may still be on its way into memory.
            if self._versions.model_state(model).previous_version != version:
                raise
        holder = f"write:{version}"
        await self._versions.bind(version, holder)
        try:
            return self._versions.pin(model, version)
        finally:
            self._versions.release(version, holder)

    async def encode(
        self,
        model: str,
        version: str,
        rows: Sequence[SourceRow],
        priority: Priority,
        *,
        patient: bool = True,
    ) -> tuple[NDArray[np.float32], dict[int, HotclipError]]:
        """Encodes rows anew: float32 (rows, dim) and the errors by position; DataLoss of those
        whose source is damaged.

        Args:
            patient: Whether to wait while the encoder takes nothing.

        Raises:
            Unavailable: it takes nothing.
        """
        errors: dict[int, HotclipError] = {}
        with await self.pin(model, version) as pin:
            vectors = np.zeros((len(rows), pin.resident.spec.dim), np.float32)
            made = [at for at, row in enumerate(rows) if row.kind != "vector"]
            for chunk in _chunks(rows, made, self._rows_at_once):
                items, damaged = await asyncio.to_thread(self._items, rows, chunk)
                errors.update(damaged)
                if items:
                    whole = list(items)
                    vectors[whole], failed = await self._encode(
                        list(items.values()), pin, priority, patient=patient
                    )
                    errors.update({whole[which]: error for which, error in failed.items()})
        for at, row in enumerate(rows):
            if row.kind == "vector":
                vectors[at] = np.frombuffer(row.item or b"", "<f4")
        return vectors, errors

    def holding(self) -> AbstractContextManager[BlobHold]:
        """Files of rows stay until the block ends, by which the rows are committed or given up."""
        return self._blobs.holding()

    def rows_of(self, points: Sequence[NewPoint], hold: BlobHold) -> list[SourceRow]:
        """Rows without a revision; stores what is large in files. Blocks; any thread."""
        return [_row_of(point, hold) for point in points]

    async def _encode(
        self, items: list[EncodeItem], pin: Pin, priority: Priority, *, patient: bool
    ) -> tuple[NDArray[np.float32], dict[int, HotclipError]]:
        while True:
            try:
                encoded = await self._encoder.encode_items(items, pin, priority=priority)
            except Unavailable as error:
                if not patient or error.reason == "SERVER_STOPPING":
                    raise
                await asyncio.sleep(max(error.retry_after_s, 0.05))
            else:
                return encoded.vectors, encoded.errors

    def _items(
        self, rows: Sequence[SourceRow], positions: Sequence[int]
    ) -> tuple[dict[int, EncodeItem], dict[int, HotclipError]]:
        """Items of the rows at these positions, and the errors of those that are damaged."""
        items: dict[int, EncodeItem] = {}
        damaged: dict[int, HotclipError] = {}
        for at in positions:
            row = rows[at]
            try:
                items[at] = EncodeItem.FromString(row.item or self._blobs.get(row.blob or ""))
            except DataLoss as error:
                damaged[at] = error
        return items, damaged


def _row_of(point: NewPoint, hold: BlobHold) -> SourceRow:
    item: bytes | None
    blob = None
    if point.vector is not None:
        item = point.vector.astype("<f4").tobytes()
    elif point.item is None:
        raise RuntimeError("a point has neither item nor vector; this is a bug")
    elif point.item.ByteSize() > _INLINE_BYTES:
        item, blob = None, hold.put(point.item.SerializeToString())
    else:
        item = point.item.SerializeToString()
    return SourceRow(
        point_id=point.id,
        revision=0,
        kind=point.kind,
        item=item,
        blob=blob,
        payload=point.payload,
        reference=point.reference,
    )


def to_meta(row: SourceRow) -> PointMeta:
    """What is stored beside the vector of a row."""
    return PointMeta(row.point_id, row.revision, row.payload)


def _chunks(rows: Sequence[SourceRow], positions: Sequence[int], most: int) -> Iterator[list[int]]:
    """Positions that are loaded and encoded together: bounded in number and memory."""
    chunk: list[int] = []
    size = 0
    for at in positions:
        item = rows[at].item
        size += _BLOB_BYTES if item is None else len(item)
        chunk.append(at)
        if len(chunk) == most or size >= _ENCODE_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
