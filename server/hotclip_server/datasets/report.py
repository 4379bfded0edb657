"""What an upload was found to hold: bad rows, duplicates, sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hotclip_server.errors import FieldViolation, InvalidArgument


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not stored. `where` is as the caller names it, e.g. "line 4"."""

    where: str
    field: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """Of one upload. Sizes are of the images that are kept; all 0 if there is none."""

    rows: int
    """Read by the caller, bad ones and duplicates included."""
    bad_rows: int
    listed: tuple[BadRow, ...]
    """The first of the bad rows, at most `DatasetLimits.max_listed_rows`."""
    duplicate_pairs: int
    """Rows that were given before and are kept once."""
    images_with_several_texts: int
    texts_with_several_images: int
    most_frequent_text: str
    """The text of the most pairs, cut to 256 characters; empty if every text is there once."""
    most_frequent_text_pairs: int
    min_width: int
    max_width: int
    min_height: int
    max_height: int
    min_image_bytes: int
    max_image_bytes: int
    formats: Mapping[str, int]
    """Images by format: JPEG, PNG, WEBP."""
    notes: tuple[str, ...]
    """What the caller remarked, such as files that were not used."""

    def to_json(self) -> dict[str, Any]:
        """For the database."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DatasetReport:
        """Reads `to_json`."""
        values = {field.name: stored[field.name] for field in fields(cls)}
        values["listed"] = tuple(BadRow(**row) for row in stored["listed"])
        values["notes"] = tuple(stored["notes"])
        return cls(**values)


class DatasetInvalid(InvalidArgument):
    """More rows are bad than the caller allows; names the first of them, `report` has more."""

    default_reason = "DATASET_INVALID"

    def __init__(self, report: DatasetReport, allowed: int) -> None:
        named = report.listed[:MOST_NAMED]
        first = f"; first {named[0].where}.{named[0].field}: {named[0].reason}" if named else ""
        super().__init__(
            f"{report.bad_rows} of {report.rows} rows are bad, {allowed} are allowed{first}",
            violations=[FieldViolation(f"{row.where}.{row.field}", row.reason) for row in named],
        )
        self.report = report


MOST_NAMED = 20
"""Bad rows in the status of a refused upload: a status is small."""
