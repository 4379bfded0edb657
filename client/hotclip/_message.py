"""Messages of values that come from a caller: what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from google.protobuf.message import Message

from hotclip.errors import InvalidArgument

M = TypeVar("M", bound=Message)
P = ParamSpec("P")

_UNFIT = (TypeError, ValueError, OverflowError)
"""What protobuf raises of a value that a field can't have."""


def made(kind: Callable[P, M], *args: P.args, **fields: P.kwargs) -> M:
    """A message of these fields, which are named as the caller's arguments are.

    Raises:
        InvalidArgument: A value is not of the field's type or out of its range; names it.
    """
    return made_under("", kind, *args, **fields)


def made_under(under: str, kind: Callable[P, M], *args: P.args, **fields: P.kwargs) -> M:
    """As `made`, of fields that are parts of the argument `under`."""
    try:
        return kind(*args, **fields)
    except _UNFIT:
        filled(kind, fields, under)  # says which
        raise


def filled(kind: Callable[..., M], values: Mapping[str, Any], under: str = "") -> M:
    """A message with these fields; None leaves one out.

    Args:
        under: Name of the argument that `values` is, if they are not arguments themselves.

    Raises:
        InvalidArgument: A value is not of the field's type or out of its range.
    """
    message = kind()
    for name, value in values.items():
        try:
            message.MergeFrom(kind(**{name: value}))
        except _UNFIT as error:
            raise unfit(f"{under}.{name}" if under else name, value, error) from error
    return message


def put(message: Message, name: str, value: object, field: str) -> None:
    """Sets a field of a message; raises as `filled`, naming `field`."""
    try:
        setattr(message, name, value)
    except _UNFIT as error:
        raise unfit(field, value, error) from error


def unfit(field: str, value: object, error: Exception) -> InvalidArgument:
    """A value that a field can't have, and why."""
    return InvalidArgument.field(field, f"can't be {value!r}: {error}")
