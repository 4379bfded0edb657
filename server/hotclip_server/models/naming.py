"""Which names, sources and ids a caller may give."""

from __future__ import annotations

import re

from hotclip_server.errors import InvalidArgument

DEFAULT_MODEL = "default"
LONGEST_SOURCE = 512
LONGEST_REQUEST_ID = 128

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_model(name: str) -> str:
    """The name, or "default" if empty.

    Raises:
        InvalidArgument: reason MODEL_NAME_INVALID.
    """
    if name and not _MODEL.fullmatch(name):
        raise InvalidArgument.field(
            "model",
            "must be 1 to 128 of A-Z, a-z, 0-9, dot, dash and underscore, "
            "and start with a letter or digit",
            reason="MODEL_NAME_INVALID",
        )
    return name or DEFAULT_MODEL


def check_source(source: str) -> None:
    """Only its length; what it means is the loader's.

    Raises:
        InvalidArgument: reason SOURCE_INVALID.
    """
    if not 0 < len(source) <= LONGEST_SOURCE:
        raise InvalidArgument.field(
            "source", f"must have 1 to {LONGEST_SOURCE} characters", reason="SOURCE_INVALID"
        )


def check_request_id(request_id: str) -> None:
    """Raises InvalidArgument with reason REQUEST_ID_INVALID."""
    if len(request_id) > LONGEST_REQUEST_ID or not request_id.isprintable():
        raise InvalidArgument.field(
            "request_id",
            f"must have at most {LONGEST_REQUEST_ID} printable characters",
            reason="REQUEST_ID_INVALID",
        )
