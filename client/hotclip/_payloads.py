"""Payloads between JSON objects and the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from hotclip.errors import InvalidArgument

_WHOLE = float(2**53)
"""Up to here a double tells whole numbers apart."""


def payload_in(payload: Mapping[str, Any], where: str) -> struct_pb2.Struct:
    """Packs a JSON object. Raises InvalidArgument that names `where`."""
    packed = struct_pb2.Struct()
    try:
        packed.update(payload)
    except (TypeError, ValueError) as error:
        raise InvalidArgument.field(where, f"not a JSON object: {error}") from error
    return packed


def payload_out(payload: struct_pb2.Struct) -> dict[str, Any]:
    """The JSON object; whole numbers are int."""
    # json_format does the same in several times the time: a search has hundreds of these.
    return {key: _value(value) for key, value in payload.fields.items()}


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
