"""Captioned photographs to train on, in a folder, and open_clip's features of some of them."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.captions import Writer
from benchmarks.corpus import SEED, SIZES
from benchmarks.photographs import Photographer


def write_pairs(root: Path, count: int) -> None:
    """So many different pairs: JPEG files of 500 × 375, captions of 8 to 14 words."""
    root.mkdir(parents=True)
    photographer, writer = Photographer(SEED), Writer(SEED)
    captions: list[str] = []
    for at in range(count):
        (root / f"{at:04}.jpg").write_bytes(photographer.jpeg(*SIZES["jpeg_small"]))
        captions.append(f"{writer.short()} {at}")
    (root / "captions.json").write_text(json.dumps(captions), encoding="utf-8")


def pairs(root: Path) -> list[tuple[str, bytes]]:
    """Captions and files."""
    captions: list[str] = json.loads((root / "captions.json").read_text(encoding="utf-8"))
    return [(text, (root / f"{at:04}.jpg").read_bytes()) for at, text in enumerate(captions)]


def write_features(root: Path, image: NDArray[np.float32], text: NDArray[np.float32]) -> None:
    """[n, dim] each."""
    np.savez(root / "features.npz", image=image, text=text)


def read_features(root: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What `write_features` wrote."""
    with np.load(root / "features.npz") as stored:
        return stored["image"], stored["text"]
