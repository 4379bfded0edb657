"""Texts that come with a request, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hotclip_server.drift.spec import MOST_TEXTS
from hotclip_server.errors import FieldViolation


def text_violations(texts: Sequence[str], max_bytes: int) -> Iterator[FieldViolation]:
    """What is wrong with a list of texts to measure with.

    Args:
        max_bytes: Of one, in UTF-8.
    """
    if len(texts) > MOST_TEXTS:
        yield FieldViolation("texts", f"has {len(texts)} entries, at most {MOST_TEXTS}")
        return
    for at, text in enumerate(texts):
        if not 1 <= len(text.encode()) <= max_bytes:
            yield FieldViolation(f"texts[{at}]", f"must be 1 to {max_bytes} bytes of UTF-8")
