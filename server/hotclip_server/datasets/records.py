"""What is known of a stored dataset, and what one may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from hotclip_server.datasets.report import DatasetReport

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
    max_listed_rows: int = 1000
    """Bad rows that a report lists; an upload with more is not read further, unless its caller
    allows so many."""
    max_uploads: int = 64
    """Unfinished uploads at a time; of more the one that was left for longest gives way."""
    upload_expiry_s: float = 24 * 3600
    """Seconds after which an unfinished upload that nobody goes on with is removed."""
    upload_idle_s: float = 15 * 60
    """Seconds for which an upload that nobody goes on with does not give way."""
    window_bytes: int = 32 * MIB
    """Bytes that a caller may have sent and not yet heard to be safe."""


@dataclass(frozen=True, kw_only=True)
class UploadTerms:
    """What the caller of an upload asked for."""

    name: str
    description: str
    max_bad_rows: int = 0
    max_bad_share: float = 0.0
    """Of all rows; the larger of the two limits holds."""

    def allowed(self, rows: int) -> int:
        """Bad rows among so many with which the others are stored."""
        return max(self.max_bad_rows, math.floor(self.max_bad_share * rows + 1e-9))


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What the caller says that it has sent."""

    pairs: int
    images: int
    digest: str = ""
    """Running checksum, hex; empty: not told."""
    notes: tuple[str, ...] = ()


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
    report: DatasetReport | None = None
    """Of the upload; None in lists."""
