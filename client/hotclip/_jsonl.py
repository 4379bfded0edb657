"""Pairs of a file of JSON objects, one a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO

from hotclip._pairs import BadRow, ImagePair
from hotclip._records import Places, field_of, pairs_of_record

LONGEST_LINE = 1 << 20  # characters


class JsonRows:
    """The rows of an open file."""

    def __init__(self, lines: IO[str], places: Places) -> None:
        self.notes: list[str] = []
        self._lines, self._places = lines, places

    def __iter__(self) -> Iterator[ImagePair | BadRow]:
        for number, line in enumerate(self._each(), 1):
            where = f"line {number}"
            if len(line) > LONGEST_LINE:
                yield BadRow(where, "", f"longer than {LONGEST_LINE} characters")
            elif line.strip():
                try:
                    record = record_of(line)
                except ValueError as error:
                    yield BadRow(where, "", str(error))
                else:
                    yield from pairs_of_record(record, where, self._places)

    def _each(self) -> Iterator[str]:
        """Lines; of one that is too long its beginning."""
        while line := self._lines.readline(LONGEST_LINE + 1):
            yield line
            while len(line) > LONGEST_LINE and not line.endswith("\n"):
                line = self._lines.readline(LONGEST_LINE + 1)


def record_of(text: str) -> Mapping[str, object]:
    """An object's values by field; a name before its aliases.

    Raises:
        ValueError: It is no JSON object.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    record: dict[str, object] = {}
    for key, value in found.items():
        field = field_of(key)
        if field and (field not in record or key == field):
            record[field] = value
    return record
