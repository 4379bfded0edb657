"""Messages of values that come from a caller: what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message

from hotclip.errors import InvalidArgument

M = TypeVar("M", bound=Message)


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
        except (TypeError, ValueError) as error:
            raise unfit(f"{under}.{name}" if under else name, value, error) from error
    return message


def put(message: Message, name: str, value: object, field: str) -> None:
    """Sets a field of a message; raises as `filled`, naming `field`."""
    try:
        setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise unfit(field, value, error) from error


def unfit(field: str, value: object, error: Exception) -> InvalidArgument:
    """A value that a field can't have, and why."""
    return InvalidArgument.field(field, f"can't be {value!r}: {error}")
