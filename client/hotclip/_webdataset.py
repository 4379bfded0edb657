"""Pairs of a WebDataset: a tar in which files with the same name before the first dot are one
sample, an image and its text."""

from __future__ import annotations

import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from hotclip._inputs import MAX_IMAGE_BYTES, Image
from hotclip._jsonl import record_of
from hotclip._pairs import BadRow, ImagePair
from hotclip._records import Places, pairs_of_record, printable
from hotclip.errors import InvalidArgument

IMAGES = ("jpg", "jpeg", "png", "webp")
_TEXT, _RECORD, _LABEL = "txt", "json", "cls"
_LONGEST_TEXT = 1 << 20
_LONGEST_HEADER = 1 << 20
_MAX_SUFFIXES = 100  # that are counted one by one
_BLOCK = 1 << 16
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


# What tarfile raises for data that is no tar; a damaged sparse header is a ValueError.
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error)


@dataclass
class _Sample:
    key: str
    image: bytes | None = None
    texts: dict[str, str] = field(default_factory=dict)
    """By suffix."""
    problem: tuple[str, str] | None = None
    """Field and reason."""

    def spoil(self, name: str, problem: str) -> None:
        self.problem = self.problem or (name, problem)


class TarRows:
    """The samples of an open tar, which is read once from its beginning to its end.

    Nothing is written to disk, whatever the names in the tar say.

    Args:
        data: Binary; may be compressed with gzip, bzip2 or xz.
        name: The file's, for people.
    """

    def __init__(self, data: IO[bytes], name: str, places: Places) -> None:
        self.notes: list[str] = []
        self._data, self._name, self._places = data, name, places
        self._unused: Counter[str] = Counter()

    def __iter__(self) -> Iterator[ImagePair | BadRow]:
        sample: _Sample | None = None
        for tar, member in self._members():
            key, suffix = _split(member.name)
            if sample is None or sample.key != key:
                if sample is not None:
                    yield from self._pairs(sample)
                sample = _Sample(key)
            self._take(sample, suffix, member, tar)
        if sample is not None:
            yield from self._pairs(sample)
        if self._unused:
            told = ", ".join(f"{n} × {s or 'no suffix'}" for s, n in self._unused.most_common(20))
            self.notes = [f"{self._name}: files that are not used: {told}"]

    def _members(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        ending: list[str] = []
        last = ""
        try:
            with tarfile.open(fileobj=self._data, mode="r|*", tarinfo=_member_class(ending)) as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps every one
                    last = member.name
                    if not member.isdir():
                        yield tar, member
                if ending == [""] and _goes_on(tar):
                    ending = ["something follows its end; several tars go into a folder"]
        except _DAMAGE as error:
            raise self._damaged(str(error), last) from error
        if ending != [""]:
            raise self._damaged(ending[0] if ending else "no end", last)

    def _take(
        self, sample: _Sample, suffix: str, member: tarfile.TarInfo, tar: tarfile.TarFile
    ) -> None:
        kind = "image" if suffix in IMAGES else "text"
        if suffix not in (*IMAGES, _TEXT, _RECORD, _LABEL):
            known = suffix in self._unused or len(self._unused) < _MAX_SUFFIXES
            self._unused[printable(suffix) if known else "other"] += 1
            return
        most = MAX_IMAGE_BYTES if kind == "image" else _LONGEST_TEXT
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
            sample.spoil(kind, f".{suffix} is no plain file but a link, a device or sparse")
        elif member.size > most:
            sample.spoil(kind, f".{suffix} has {member.size} bytes, {most} are allowed")
        elif kind == "image" and sample.image is not None:
            sample.spoil(kind, "more than one image")
        elif suffix in sample.texts:
            sample.spoil(kind, f"more than one .{suffix}")
        else:
            data = self._read(member, tar)
            if kind == "image":
                sample.image = data
            else:
                sample.texts[suffix] = data.decode("utf-8", "surrogateescape")

    def _read(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> bytes:
        try:
            file = tar.extractfile(member)
            data = file.read() if file else b""
        except _DAMAGE as error:
            raise self._damaged(str(error), member.name) from error
        if len(data) != member.size:
            raise self._damaged("it ends early", member.name)
        return data

    def _pairs(self, sample: _Sample) -> Iterator[ImagePair | BadRow]:
        where = f"{self._name}: sample {printable(sample.key)}"
        if sample.problem is not None:
            yield BadRow(where, *sample.problem)
            return
        if sample.image is None:
            if sample.texts:
                yield BadRow(where, "image", "no image (.jpg, .jpeg, .png, .webp) beside its text")
            return
        record: dict[str, object] = {}
        if _RECORD in sample.texts:
            try:
                record.update(record_of(sample.texts[_RECORD]))
            except ValueError as error:
                yield BadRow(where, "text", f".json: {error}")
                return
        if _TEXT in sample.texts:
            record["text"] = sample.texts[_TEXT].rstrip("\r\n")
        if _LABEL in sample.texts:
            record["label"] = sample.texts[_LABEL].strip()
        yield from pairs_of_record(record, where, self._places, Image.from_bytes(sample.image))

    def _damaged(self, problem: str, last: str) -> InvalidArgument:
        at = f" at {printable(last)}" if last else ""
        return InvalidArgument.field(
            "path", f"{self._name} is damaged{at}: {problem}", reason="PAIRS_INVALID"
        )


def _goes_on(tar: tarfile.TarFile) -> bool:
    """Whether anything but padding follows the end of an uncompressed tar, such as another tar,
    which nobody would miss."""
    stream: Any = tar.fileobj
    if stream.comptype != "tar":
        return False
    return any(block.strip(b"\0") for block in iter(partial(stream.read, _BLOCK), b""))


def _split(name: str) -> tuple[str, str]:
    """Key and suffix: "a/b.c.jpg" is ("a/b", "c.jpg"), as WebDataset has it."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _member_class(ending: list[str]) -> type[tarfile.TarInfo]:
    """Headers that are bounded, and that tell how the tar ended: tarfile itself takes a damaged
    header, and a cut file, for its end."""

    class Member(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Member:
            try:
                member = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                is_end = isinstance(error, tarfile.EOFHeaderError)  # type: ignore[attr-defined]
                ending.append("" if is_end else str(error))
                raise
            if member.type in _EXTENDED and member.size > _LONGEST_HEADER:
                raise tarfile.ReadError(f"a header of {member.size} bytes")
            return member

    return Member
