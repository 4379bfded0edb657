"""Payloads between JSON objects and the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from hotclip.errors import InvalidArgument

_WHOLE = 2**53
"""Up to here a double tells whole numbers apart."""


def payload_in(payload: Mapping[str, Any], where: str) -> struct_pb2.Struct:
    """Packs a JSON object.

    Raises:
        InvalidArgument: It is none, or holds a number that would come back as another one;
            names the value below `where`.
    """
    packed = struct_pb2.Struct()
    try:
        _write_object(packed, payload, where)
    except InvalidArgument:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument.field(where, f"not a JSON object: {error}") from error
    return packed


def payload_out(payload: struct_pb2.Struct) -> dict[str, Any]:
    """The JSON object; whole numbers are int."""
    # json_format does the same in several times the time: a search has hundreds of these.
    return {key: _value(value) for key, value in payload.fields.items()}


def _write_object(target: struct_pb2.Struct, payload: object, where: str) -> None:
    if not isinstance(payload, Mapping):
        raise InvalidArgument.field(where, f"not a JSON object but {type(payload).__name__}")
    # Struct.update does the same in twice the time, and takes what it can't keep.
    for key, value in payload.items():
        _write(target.fields[key], value, f"{where}.{key}")


def _write(target: struct_pb2.Value, value: object, where: str) -> None:
    match value:
        case str():
            target.string_value = value
        case bool():
            target.bool_value = value
        case None:
            target.null_value = struct_pb2.NULL_VALUE
        case int() | float():
            target.number_value = _number(value, where)
        case Mapping():
            target.struct_value.SetInParent()
            _write_object(target.struct_value, value, where)
        case list() | tuple():
            target.list_value.SetInParent()
            for at, inner in enumerate(value):
                _write(target.list_value.values.add(), inner, f"{where}[{at}]")
        case _:
            raise InvalidArgument.field(where, f"{type(value).__name__} is not of JSON")


def _number(value: int | float, where: str) -> float:
    if isinstance(value, int) and abs(value) > _WHOLE:
        problem = f"{value} is beyond 2^53, where payloads lose last digits: make it a str"
        raise InvalidArgument.field(where, problem)
    if not math.isfinite(value):
        raise InvalidArgument.field(where, f"JSON has no {value}")
    return value


def _value(value: struct_pb2.Value) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= _WHOLE else number
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return payload_out(value.struct_value)
        case "list_value":
            return [_value(inner) for inner in value.list_value.values]
    return None
