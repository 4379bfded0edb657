"""Archives of models: an uncompressed tar of one folder.

A tar, because weights don't compress, it is written in one pass and can be sent from any byte on,
and the same files always make the same bytes. Not a zip: its directory is at the end, and what
comes from elsewhere could be a bomb.

Reading trusts nothing: only plain files and the folder that they are in, with plain names and
suffixes of files that a model has. So nothing can leave the folder that it is unpacked into, and
what is unpacked is no larger than the archive.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hotclip_server.errors import InvalidArgument

MOST_FILES = 64
CHUNK_BYTES = 1 << 20
SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors", ".onnx"})

Progress = Callable[[int], None]
"""Told how many more bytes are done; may raise to end the work."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
_END = bytes(tarfile.BLOCKSIZE)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file in an archive: its name without the folder, and where its bytes are."""

    name: str
    start: int
    size: int


def write_archive(
    path: Path, folder: str, files: Mapping[str, Path], progress: Progress = lambda _: None
) -> str:
    """Writes the files, in order of name, as `path`, which did not exist; not synced.

    Returns:
        sha256 of the archive, hex.
    """
    digest = hashlib.sha256()
    with path.open("xb") as out:

        def write(data: bytes) -> None:
            digest.update(data)
            out.write(data)
            progress(len(data))

        for name, file in sorted(files.items()):
            size = file.stat().st_size
            write(_header(f"{folder}/{name}", size))
            with file.open("rb") as content:
                copied = _copy(content, size, write)
            if copied != size:
                raise OSError(f"{name} became shorter while it was read")
            write(bytes(-size % tarfile.BLOCKSIZE))
        write(_END * 2)
        write(bytes(-out.tell() % tarfile.RECORDSIZE))
    return digest.hexdigest()


def read_entries(path: Path) -> list[Entry]:
    """What is in an archive, read from its headers alone.

    Raises:
        InvalidArgument: it is none, or holds something that a model does not; reason
            ARTIFACT_INVALID.
    """
    found: dict[str, Entry] = {}
    folders: set[str] = set()
    length = path.stat().st_size
    with path.open("rb") as file:
        for header, start in _headers(file, length):
            parts = header.name.rstrip("/").split("/")
            if len(parts) > 2 or not all(map(_NAME.fullmatch, parts)):
                raise _invalid(f"{header.name!r} is not the plain name of a file in one folder")
            if header.type == tarfile.DIRTYPE and len(parts) == 1 and not header.size:
                folders.add(parts[0])
                continue
            if header.type not in _PLAIN:
                raise _invalid(f"{header.name!r} is not a plain file")
            name = parts[-1]
            if Path(name).suffix not in SUFFIXES:
                raise _invalid(f"{name!r} is no file of a model: {', '.join(sorted(SUFFIXES))}")
            folders.add(parts[0] if len(parts) == 2 else "")
            if name in found or len(found) == MOST_FILES or len(folders) > 1:
                raise _invalid(f"more than {MOST_FILES} files, two folders, or {name!r} twice")
            found[name] = Entry(name=name, start=start, size=header.size)
    if not found:
        raise _invalid("it holds no file")
    return list(found.values())


def read_entry(path: Path, entry: Entry) -> bytes:
    """The content of a file; for small ones."""
    with path.open("rb") as file:
        file.seek(entry.start)
        return file.read(entry.size)


def unpack(path: Path, folder: Path, progress: Progress = lambda _: None) -> None:
    """Writes the files of an archive into an existing folder; errors as `read_entries`."""
    for entry in read_entries(path):
        with path.open("rb") as file, (folder / entry.name).open("xb") as out:
            file.seek(entry.start)

            def write(data: bytes, out: BinaryIO = out) -> None:
                out.write(data)
                progress(len(data))

            _copy(file, entry.size, write)


def _headers(file: BinaryIO, length: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    place = 0
    while (block := file.read(tarfile.BLOCKSIZE)) != _END:
        try:
            header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise _invalid(f"not a tar: {error}") from error
        place += tarfile.BLOCKSIZE
        if not 0 <= header.size <= length - place:
            raise _invalid(f"{header.name!r} is cut")
        yield header, place
        place += header.size + -header.size % tarfile.BLOCKSIZE
        file.seek(place)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    # GNU's way to say sizes of 8 GiB and more needs no second header.
    return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _copy(source: io.BufferedIOBase | BinaryIO, size: int, write: Callable[[bytes], None]) -> int:
    left = size
    while left and (data := source.read(min(left, CHUNK_BYTES))):
        write(data)
        left -= len(data)
    return size - left


def _invalid(problem: str) -> InvalidArgument:
    return InvalidArgument(f"not an archive of a model: {problem}", reason="ARTIFACT_INVALID")
