"""Encoding on this machine with a model that was downloaded, without a server.

Needs the extra `local` (ONNX Runtime, Pillow, tokenizers, ftfy), or open_clip for plain torch.
Both are imported when a model is read.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hotclip._artifacts import sha256_of
from hotclip._embeddings import Embeddings
from hotclip._inputs import Item, Text, image_of, is_single
from hotclip._parcel import CONFIG_FILE
from hotclip._resize import ImagePreprocessing
from hotclip.errors import DataLoss, FailedPrecondition, InvalidArgument

Tower: TypeAlias = Literal["clip-text", "clip-vision"]
LOCAL_FILE = "hotclip_local.json"
MANIFEST_FILE = "hotclip_version.json"


class Encode(Protocol):
    """What runs a tower."""

    def __call__(self, items: list[Any], /) -> NDArray[np.float32]:
        """Embeddings of texts (str) or images (uint8 [height, width, 3]): float32 [n, dim]."""


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """One tower of a model, on this machine."""

    tower: Tower
    version: str
    """Id of the version on the server that exported it; empty if it comes from elsewhere."""
    space_id: str
    """Space of the embeddings; those of the server of the same space may be compared."""
    images: ImagePreprocessing
    """How an image becomes the input of clip-vision."""
    run: Encode
    """Embeddings of prepared items."""

    def encode(self, data: Item | Iterable[Item], *, batch_size: int = 32) -> Embeddings:
        """Embeddings of unit length, as the server gives them.

        Args:
            data: Of clip-text texts, of clip-vision images in every form that Client.encode
                takes; one or many.
            batch_size: Items that run together.

        Returns:
            float32 (n, dim), or (dim,) of a single item.

        Raises:
            InvalidArgument: An item is of the other tower, or an image can't be read.
        """
        if batch_size < 1:
            raise InvalidArgument.field("batch_size", f"{batch_size} is not at least 1")
        single = is_single(data)
        values: Iterator[Any] = iter([data] if single else data)  # type: ignore[arg-type]  # not both
        rows: list[NDArray[np.float32]] = []
        place = 0
        while some := list(islice(values, batch_size)):
            rows.append(self.run([self._prepared(v, place + i) for i, v in enumerate(some)]))
            place += len(some)
        if not rows:
            raise InvalidArgument.field("data", "empty")
        made = np.concatenate(rows)
        return Embeddings(made[0] if single else made, version=self.version, space_id=self.space_id)

    def _prepared(self, value: object, place: int) -> Any:
        field = f"data[{place}]"
        if isinstance(value, str | Text):
            if self.tower != "clip-text":
                raise InvalidArgument.field(field, "a text, but this is clip-vision")
            return value.text if isinstance(value, Text) else value
        if self.tower != "clip-vision":
            raise InvalidArgument.field(field, "no text, but this is clip-text")
        from hotclip._local_images import pixels_of

        return pixels_of(image_of(value, field), self.images, field)


def get_model(
    artifact: Path | str,
    select_model: Tower = "clip-text",
    *,
    is_onnx: bool = False,
    device: str = "cpu",
) -> LocalModel:
    """Reads one tower of a downloaded model, to encode without a server.

    Asks no hub. Plain `open_clip.create_model("local-dir:…")` would, for the config of a text tower
    that comes from one (XLM-RoBERTa): it must be given `text_cfg` with the folder as
    `hf_model_name` and `hf_model_pretrained` false, for the name in the file is the hub's.

    Args:
        artifact: The archive that download_artifact or save_artifact wrote, or the folder
            that it holds.
        select_model: "clip-text" or "clip-vision".
        is_onnx: Run it by ONNX Runtime (the artifact was exported as "onnx"; needs the extra
            `local`) instead of open_clip.
        device: Of open_clip: "cpu" or "cuda"; ONNX Runtime runs on the CPU.

    Raises:
        InvalidArgument: Not such a file; a delta is imported into a server first.
        DataLoss: A file is not what was exported (reason CHECKSUM).
        FailedPrecondition: A package is missing (reason PACKAGE_MISSING), the artifact has no
            ONNX files (reason NOT_ONNX) or a tokenizer that only open_clip has (reason
            TOKENIZER_UNSUPPORTED).
    """
    if select_model not in ("clip-text", "clip-vision"):
        raise InvalidArgument.field("select_model", f"{select_model!r} is no tower")
    with _folder(Path(artifact)) as folder:
        facts = _facts(folder)
        return LocalModel(
            tower=select_model,
            version=facts.get("id", ""),
            space_id=facts.get("spec", {}).get("space_id", ""),
            images=_images(folder),
            run=_read(is_onnx, folder, select_model, device),
        )


def _read(is_onnx: bool, folder: Path, tower: Tower, device: str) -> Encode:
    from hotclip._local_onnx import read_onnx
    from hotclip._local_torch import read_torch

    try:
        return read_onnx(folder, tower, device) if is_onnx else read_torch(folder, tower, device)
    except ImportError as error:
        extra = "hotclip[local]" if is_onnx else "open_clip_torch"
        raise FailedPrecondition(
            f"{error.name} is missing: pip install '{extra}'", reason="PACKAGE_MISSING"
        ) from error


@contextmanager
def _folder(artifact: Path) -> Iterator[Path]:
    """Where the files are; an archive is unpacked for as long as it is read."""
    if artifact.is_dir():
        yield _inner(artifact)
        return
    if not artifact.is_file() or not tarfile.is_tarfile(artifact):
        raise InvalidArgument.field("artifact", f"{artifact} is neither a folder nor an archive")
    # Windows can't remove what is still mapped.
    with tempfile.TemporaryDirectory(prefix="hotclip-", ignore_cleanup_errors=True) as scratch:
        try:
            with tarfile.open(artifact, "r:") as tar:
                tar.extractall(scratch, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise InvalidArgument.field("artifact", f"{artifact}: {error}") from error
        yield _inner(Path(scratch))


def _inner(folder: Path) -> Path:
    """The folder with the config: this one, or the only one in it."""
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if (place / CONFIG_FILE).is_file():
            return place
    raise InvalidArgument.field("artifact", f"{folder.name} has no {CONFIG_FILE}")


def _facts(folder: Path) -> dict[str, Any]:
    """What the exporting server wrote of the version; nothing for a model from elsewhere.

    Raises:
        DataLoss: That, or a file that it names, is not what was exported.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        files: dict[str, str] = found["files"]
        good = all(sha256_of(folder / Path(name).name) == told for name, told in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataLoss(f"{folder.name} is damaged: {error!r}", reason="CHECKSUM") from error
    if not good:
        raise DataLoss(f"{folder.name} is damaged: a checksum does not match", reason="CHECKSUM")
    return found


def _images(folder: Path) -> ImagePreprocessing:
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    told = config.get("preprocess_cfg") or {}
    size = told.get("size") or config["model_cfg"]["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return ImagePreprocessing(
        id="",
        height=height,
        width=width,
        resize_mode=told.get("resize_mode") or "shortest",
        interpolation=told.get("interpolation") or "bicubic",
        fill_color=told.get("fill_color") or 0,
    )
