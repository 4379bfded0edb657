"""What an upload was found to hold, for programs and for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hotclip._pairs import BadRow
from hotclip_proto.v1 import dataset_pb2

_SHOWN = 20
_KIB = 1 << 10


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """Of one upload; str() of it is a table for people."""

    rows: int
    """Read, bad ones and duplicates included."""
    bad_rows: int
    listed: tuple[BadRow, ...]
    """The first of the bad rows, at most 1,000."""
    duplicate_pairs: int
    """Rows that were given before and are kept once."""
    images_with_several_texts: int
    """Fine: one of the texts is drawn each epoch."""
    texts_with_several_images: int
    """Fine: they belong together."""
    most_frequent_text: str
    """Cut to 256 characters; empty if every text is there once."""
    most_frequent_text_pairs: int
    min_width: int
    max_width: int
    min_height: int
    max_height: int
    """Pixels, as the others."""
    min_image_bytes: int
    max_image_bytes: int
    formats: Mapping[str, int]
    """Images by format: "JPEG", "PNG", "WEBP"."""
    notes: tuple[str, ...]
    """Such as columns and files that were not used."""

    def __str__(self) -> str:
        formats = ", ".join(f"{count} {name}" for name, count in sorted(self.formats.items()))
        lines = [
            f"rows                       {self.rows}",
            f"bad rows, left out         {self.bad_rows}",
            f"duplicates, kept once      {self.duplicate_pairs}",
            f"images with several texts  {self.images_with_several_texts}",
            f"texts with several images  {self.texts_with_several_images}",
            f"images                     {formats or 'none'}",
        ]
        if self.formats:
            lines += [
                f"  width × height           {self.min_width}…{self.max_width} ×"
                f" {self.min_height}…{self.max_height} pixels",
                f"  size                     {self.min_image_bytes / _KIB:.1f}…"
                f"{self.max_image_bytes / _KIB:.1f} KiB",
            ]
        if self.most_frequent_text:
            text = " ".join(self.most_frequent_text.split())[:60]
            lines.append(f"most frequent text         {text!r}, {self.most_frequent_text_pairs} ×")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"bad: {row}" for row in self.listed[:_SHOWN]]
        more = self.bad_rows - min(len(self.listed), _SHOWN)
        return "\n".join([*lines, f"bad: and {more} more"] if more > 0 else lines)


def report_of(message: dataset_pb2.DatasetReport) -> DatasetReport:
    """Parses a report."""
    return DatasetReport(
        rows=message.rows,
        bad_rows=message.bad_rows,
        listed=tuple(BadRow(row.where, row.field, row.reason) for row in message.listed),
        duplicate_pairs=message.duplicate_pairs,
        images_with_several_texts=message.images_with_several_texts,
        texts_with_several_images=message.texts_with_several_images,
        most_frequent_text=message.most_frequent_text,
        most_frequent_text_pairs=message.most_frequent_text_pairs,
        min_width=message.min_width,
        max_width=message.max_width,
        min_height=message.min_height,
        max_height=message.max_height,
        min_image_bytes=message.min_image_bytes,
        max_image_bytes=message.max_image_bytes,
        formats=dict(message.formats),
        notes=tuple(message.notes),
    )
