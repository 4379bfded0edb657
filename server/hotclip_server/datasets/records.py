"""What is known of a stored dataset, and what one may be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, kw_only=True)
class DatasetLimits:
    """What is refused."""

    max_bytes: int = 10 * GIB
    """Bytes of images and texts of one dataset."""
    min_free_disk_bytes: int = 256 * MIB
    """An upload ends when less than this would stay free on the disk."""
    max_image_bytes: int = 20 * MIB
    max_image_pixels: int = 50_000_000
    """Read from the header before decoding."""
    max_text_bytes: int = 8 << 10
    """UTF-8."""
    max_group_bytes: int = 1 << 10
    """Of a group or a label, UTF-8."""
    max_negatives: int = 64
    """Texts, and images, that a row may name as wrong."""
    max_violations: int = 32
    """Bad rows that are reported; an upload with so many is not read further."""


@dataclass(frozen=True, kw_only=True)
class DatasetCounts:
    """Sizes of a dataset; `duplicate_pairs` were given again and are kept once."""

    pairs: int
    images: int
    texts: int
    groups: int
    labels: int
    uncaptioned_pairs: int
    """With a label and without a text."""
    pairs_with_negatives: int
    duplicate_pairs: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """One row of the table of datasets. The time is aware, in UTC."""

    id: str
    name: str
    description: str
    counts: DatasetCounts
    create_time: datetime
