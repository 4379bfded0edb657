"""What is sent: items of each kind in a folder, so that every process reads the same ones.

<root>/jpeg_small/0000.jpg …   500 x 375
<root>/jpeg_large/0000.jpg …   1280 x 853
<root>/tensor.npy              uint8 (n, side, side, 3), the model's input size
<root>/text.json               captions of 8 to 14 words
<root>/text_long.json          captions of more than 60 tokens
<root>/<content>.reference.npy float32 (m, dim), m <= n: plain open_clip's unit vectors
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.captions import Writer
from benchmarks.photographs import Photographer
from hotclip_proto.v1.encode_pb2 import EncodeRequest
from hotclip_proto.v1.types_pb2 import EncodeItem, ImageTensor

SIZES = {"jpeg_small": (500, 375), "jpeg_large": (1280, 853)}
"""Width and height in pixels."""
TEXTS = ("text", "text_long")
CONTENTS = (*SIZES, "tensor", *TEXTS)
SEED = 20_260_101

TEXT_TOWER, VISION_TOWER = "clip-text", "clip-vision"

Item = str | bytes | NDArray[np.uint8]


def write_corpus(root: Path, counts: Mapping[str, int], image_size: int) -> dict[str, float]:
    """Writes so many items of each kind that `counts` names.

    Args:
        image_size: Height and width of the model's input in pixels.

    Returns:
        Mean bytes of an item, by kind.
    """
    photographer, writer = Photographer(SEED), Writer(SEED)
    sizes: dict[str, float] = {}
    for content, count in counts.items():
        if content in SIZES:
            folder = root / content
            folder.mkdir(parents=True)
            files = [photographer.jpeg(*SIZES[content]) for _ in range(count)]
            for at, data in enumerate(files):
                (folder / f"{at:04}.jpg").write_bytes(data)
            sizes[content] = sum(map(len, files)) / count
        elif content == "tensor":
            pixels = np.stack([_shrunk(photographer, image_size) for _ in range(count)])
            root.mkdir(parents=True, exist_ok=True)
            np.save(root / "tensor.npy", pixels)
            sizes[content] = pixels.nbytes / count
        else:
            captions = [
                writer.short() if content == "text" else writer.long() for _ in range(count)
            ]
            root.mkdir(parents=True, exist_ok=True)
            (root / f"{content}.json").write_text(json.dumps(captions), encoding="utf-8")
            sizes[content] = sum(map(len, captions)) / count
    return sizes


def read_items(root: Path, content: str) -> list[Item]:
    """All items of one kind: captions, JPEG files or pixels (side, side, 3)."""
    if content in TEXTS:
        captions: list[Item] = json.loads((root / f"{content}.json").read_text(encoding="utf-8"))
        return captions
    if content == "tensor":
        return list(np.load(root / "tensor.npy"))
    return [path.read_bytes() for path in sorted((root / content).iterdir())]


def read_references(root: Path, content: str) -> NDArray[np.float32]:
    """Plain open_clip's vectors of the first items of one kind."""
    rows: NDArray[np.float32] = np.load(root / f"{content}.reference.npy")
    return rows


def write_references(root: Path, content: str, rows: NDArray[np.float32]) -> None:
    np.save(root / f"{content}.reference.npy", rows)


def tower_of(content: str) -> str:
    """Which tower a kind of item goes to."""
    return TEXT_TOWER if content in TEXTS else VISION_TOWER


def encode_request(items: Sequence[Item]) -> EncodeRequest:
    """The message that asks for these."""
    return EncodeRequest(items=[_encode_item(item) for item in items])


def _encode_item(item: Item) -> EncodeItem:
    if isinstance(item, str):
        return EncodeItem(text=item)
    if isinstance(item, bytes):
        return EncodeItem(image=item)
    height, width, _ = item.shape
    return EncodeItem(tensor=ImageTensor(data=item.tobytes(), height=height, width=width))


def _shrunk(photographer: Photographer, side: int) -> NDArray[np.uint8]:
    picture = Image.fromarray(photographer.picture(512, 512))
    return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
