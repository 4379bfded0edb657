"""A model's files as one archive to send, made while it is read: nothing is written."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

from hotclip.errors import InvalidArgument

CONFIG_FILE = "open_clip_config.json"
DELTA_FILE = "hotclip_delta.safetensors"
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
)
_OTHERS = {".json", ".txt", ".model"}
_READ_BYTES = 1 << 20


class Parcel:
    """An archive (.tar) as it is, or a folder as it would be in one.

    Of a folder go the config, the weights (safetensors, the first of the names that open_clip
    knows) and what tokenizers have: other .json, .txt and .model files. Everything else, such as
    pickled checkpoints and readme files, stays.

    Raises:
        InvalidArgument: Not such a file or folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pieces: list[tuple[int, bytes | Path]] = []
        if path.is_dir():
            self._add_files(_files(path))
        elif path.is_file() and tarfile.is_tarfile(path):
            self._pieces.append((path.stat().st_size, path))
        else:
            raise InvalidArgument.field("path", f"{path} is neither a folder nor a tar archive")
        self.size = sum(size for size, _ in self._pieces)

    def sha256(self) -> str:
        """Of all of it, hex; reads everything."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, _READ_BYTES):
            digest.update(self.read(offset, _READ_BYTES))
        return digest.hexdigest()

    def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from an offset on.

        Raises:
            InvalidArgument: A file became shorter or can't be read.
        """
        return b"".join(self._parts(offset, min(count, self.size - offset)))

    def _parts(self, offset: int, count: int) -> Iterator[bytes]:
        for size, content in self._pieces:
            if offset < size and count:
                wanted = min(size - offset, count)
                yield self._slice(content, offset, wanted)
                offset, count = size, count - wanted
            offset -= size

    def _slice(self, content: bytes | Path, offset: int, count: int) -> bytes:
        if isinstance(content, bytes):
            return content[offset : offset + count]
        try:
            with content.open("rb") as file:
                file.seek(offset)
                data = file.read(count)
        except OSError as error:
            raise InvalidArgument.field("path", f"{content}: {error}") from error
        if len(data) != count:
            raise InvalidArgument.field("path", f"{content} became shorter while it was read")
        return data

    def _add_files(self, files: list[Path]) -> None:
        for file in files:
            info = tarfile.TarInfo(f"model/{file.name}")
            info.size, info.mode = file.stat().st_size, 0o644
            self._pieces.append((tarfile.BLOCKSIZE, info.tobuf(tarfile.GNU_FORMAT)))
            self._pieces.append((info.size, file))
            self._pieces.append((-info.size % tarfile.BLOCKSIZE, bytes(tarfile.BLOCKSIZE)))
        self._pieces.append((2 * tarfile.BLOCKSIZE, bytes(2 * tarfile.BLOCKSIZE)))


def _files(folder: Path) -> list[Path]:
    there = {path.name: path for path in folder.iterdir() if path.is_file()}
    weights = next((there[n] for n in (DELTA_FILE, *WEIGHT_FILES) if n in there), None)
    if weights is None:
        names = ", ".join(WEIGHT_FILES)
        raise InvalidArgument.field("path", f"{folder} has no weights ({names})")
    if weights.name != DELTA_FILE and CONFIG_FILE not in there:
        raise InvalidArgument.field("path", f"{folder} has no {CONFIG_FILE}")
    others = [
        path for name, path in there.items() if path.suffix in _OTHERS and not name.startswith(".")
    ]
    return sorted([weights, *others])
