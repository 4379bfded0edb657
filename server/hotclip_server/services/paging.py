"""AIP-158 pages by key: a token holds the last key of its page, so that a page stays right
while rows come and go.

    page = PageRequest.parse(request.page_size, request.page_token, listing="versions/default")
    rows = read(after=page.after, limit=page.size + 1)
    rows, token = page.cut(rows, key=lambda row: (row.time, row.id))
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hotclip_server.errors import InvalidArgument

DEFAULT_SIZE = 100
LARGEST_SIZE = 1000
LONGEST_TOKEN = 4096

Key = tuple[str | int | float, ...]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PageRequest:
    """What a caller asked for."""

    size: int
    """Most rows of the page."""
    after: Key | None
    """Key of the last row of the page before; None on the first page."""
    listing: str
    """What is listed, with its filters; a token of another listing is refused."""

    @classmethod
    def parse(
        cls, size: int, token: str, *, listing: str, kinds: Sequence[type] = ()
    ) -> PageRequest:
        """Checks the two fields that every List request has.

        Args:
            size: 0 for the default of 100, at most 1,000.
            token: Empty for the first page.
            kinds: Types of the key's elements; default: one str.

        Raises:
            InvalidArgument: reasons PAGE_SIZE_INVALID, PAGE_TOKEN_INVALID.
        """
        if not 0 <= size <= LARGEST_SIZE:
            raise InvalidArgument.field(
                "page_size", f"{size} is not in 1 to {LARGEST_SIZE}", reason="PAGE_SIZE_INVALID"
            )
        after = _decode(token, listing, tuple(kinds) or (str,)) if token else None
        return cls(size=size or DEFAULT_SIZE, after=after, listing=listing)

    def cut(self, rows: Sequence[T], key: Callable[[T], Key]) -> tuple[list[T], str]:
        """Makes a page of `size + 1` or fewer rows that follow `after`.

        Returns:
            The rows of the page, and the token of the next page; empty on the last.
        """
        page = list(rows[: self.size])
        return page, _encode(key(page[-1]), self.listing) if len(rows) > self.size else ""

    def going_on_at(self, key: Key) -> str:
        """The token of a next page that a store goes on with by a key of its own."""
        return _encode(key, self.listing)

    def select(self, rows: Sequence[T], key: Callable[[T], Key]) -> tuple[list[T], str]:
        """Makes a page of all rows, which are in ascending order of `key`."""
        after = self.after
        return self.cut([row for row in rows if after is None or key(row) > after], key)


def invalid_token() -> InvalidArgument:
    """What a caller is told whose token is not one."""
    return InvalidArgument.field(
        "page_token", "not a token that this listing returned", reason="PAGE_TOKEN_INVALID"
    )


def _encode(key: Key, listing: str) -> str:
    body = json.dumps(key, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_seal(body, listing) + body).decode().rstrip("=")


def _decode(token: str, listing: str, kinds: tuple[type, ...]) -> Key:
    invalid = invalid_token()
    if len(token) > LONGEST_TOKEN or not token.isascii():
        raise invalid
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise invalid from None
    seal, body = raw[:8], raw[8:]
    if seal != _seal(body, listing):
        raise invalid
    try:
        key = json.loads(body)
    except (ValueError, RecursionError):
        raise invalid from None
    if not isinstance(key, list) or [type(element) for element in key] != list(kinds):
        raise invalid
    return tuple(key)


def _seal(body: bytes, listing: str) -> bytes:
    # Not a secret: it finds mistakes, and a forged key can read nothing that a page can't.
    return hashlib.sha256(listing.encode() + b"\0" + body).digest()[:8]
