"""The parts of an upload, made of rows: images, pairs, and rows that can't be sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from hotclip._inputs import Image, encoded_of
from hotclip._pairs import BadRow, ImagePair
from hotclip._server import Limits
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import dataset_pb2

Part = dataset_pb2.UploadDatasetRequest

# Of a message of rows, with the images before it: few messages, each far below any limit.
_ROWS_A_MESSAGE, _BYTES_A_MESSAGE = 64, 1 << 20
# Left of a message for everything but the image itself.
_MESSAGE_MARGIN = 64 << 10
# Images whose content is remembered, so that each is sent once; the server keeps it once anyway.
_REMEMBERED = 1 << 20
_LONGEST_REMARK = 512


class _Unsendable(Exception):
    """An image that can't be sent."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


class Parts:
    """Reads the images of one row at a time and gives each content once, before the row that names
    it; of a row that can't be sent it gives none.

    The same rows give the same parts.
    """

    def __init__(self, rows: Iterable[ImagePair | BadRow], limits: Limits) -> None:
        self._rows = rows
        self._largest = min(limits.max_image_bytes, limits.max_message_bytes - _MESSAGE_MARGIN)
        self._given: set[bytes] = set()
        self._of_source: dict[str, str] = {}
        self._last: tuple[Image | None, str] = (None, "")

    def __iter__(self) -> Iterator[Part]:
        block = _Block()
        for row in self._rows:
            if isinstance(row, BadRow):
                yield from block.reject(row)
                continue
            pair = _pair(row)
            try:
                # All of them first: the server refuses images that no row names.
                read = [(field, *self._read(image, field)) for image, field in _images(row)]
            except _Unsendable as error:
                yield from block.reject(BadRow(row.where, error.field, error.reason))
                continue
            for field, key, data in read:
                if data is not None and self._give(key):
                    block.weigh(len(data))
                    yield Part(image=dataset_pb2.DatasetImage(key=key, data=data))
                if field == "image":
                    pair.image_key = key
                else:
                    pair.negative_image_keys.append(key)
            yield from block.add(pair)
        yield from block.rest()

    def _read(self, image: Image, field: str) -> tuple[str, bytes | None]:
        """The image's key, and its bytes if they may not have been given before."""
        known = self._last[1] if image is self._last[0] else self._of_source.get(image.source, "")
        if known and bytes.fromhex(known) in self._given:
            return known, None
        try:
            data = encoded_of(image.load())
        except InvalidArgument as error:
            told = error.fields[0].reason if error.fields else error.message
            raise _Unsendable(field, told) from error
        if len(data) > self._largest:
            raise _Unsendable(field, f"has {len(data)} bytes, {self._largest} are allowed")
        key = hashlib.sha256(data).hexdigest()
        self._last = (image, key)
        if image.source:
            self._of_source[image.source] = key
        return key, data

    def _give(self, key: str) -> bool:
        """Notes that an image is given; false if it was before."""
        if len(self._given) >= _REMEMBERED:
            self._given.clear()
            self._of_source.clear()
        digest = bytes.fromhex(key)
        if digest in self._given:
            return False
        self._given.add(digest)
        return True


class _Block:
    """Collects rows of one kind until they are worth a message."""

    def __init__(self) -> None:
        self._part = Part()
        self._rows = self._bytes = 0

    def weigh(self, size: int) -> None:
        """Counts an image: rows shall not lie far behind their images."""
        self._bytes += size

    def add(self, pair: dataset_pb2.DatasetPair) -> Iterator[Part]:
        """Takes a pair; gives what is full."""
        if self._part.HasField("rejected"):
            yield from self.rest()
        self._part.pairs.pairs.append(pair)
        yield from self._counted(pair.ByteSize())

    def reject(self, row: BadRow) -> Iterator[Part]:
        """Takes a bad row; gives what is full."""
        if self._part.HasField("pairs"):
            yield from self.rest()
        told = self._part.rejected.rows.add(
            where=row.where[:_LONGEST_REMARK],
            field=row.field[:_LONGEST_REMARK],
            reason=row.reason[:_LONGEST_REMARK],
        )
        yield from self._counted(told.ByteSize())

    def rest(self) -> Iterator[Part]:
        """Gives what there is."""
        if self._rows:
            part, self._part = self._part, Part()
            self._rows = self._bytes = 0
            yield part

    def _counted(self, size: int) -> Iterator[Part]:
        self._rows += 1
        self._bytes += size
        if self._rows >= _ROWS_A_MESSAGE or self._bytes >= _BYTES_A_MESSAGE:
            yield from self.rest()


def _pair(row: ImagePair) -> dataset_pb2.DatasetPair:
    return dataset_pb2.DatasetPair(
        text=row.text,
        group=row.group,
        label=row.label,
        score=None if row.score == 1 else row.score,
        negative_texts=row.negative_texts,
        where=row.where[:_LONGEST_REMARK],
    )


def _images(row: ImagePair) -> Iterator[tuple[Image, str]]:
    yield row.image, "image"
    for image in row.negative_images:
        yield image, "negative_images"
