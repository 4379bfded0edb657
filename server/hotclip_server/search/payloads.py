"""Payloads between the wire (protobuf Struct) and JSON."""

from __future__ import annotations

import json
import math
from typing import Any

from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value

LARGEST_WHOLE = 2**53
"""Up to here a double tells whole numbers apart."""
MAX_DEPTH = 24
"""Objects and lists within each other. Protobuf reads 100 messages within each other, of which
each object is three; an answer has more around a payload than the request that brought it."""


def payload_from_struct(struct: Struct, max_bytes: int) -> dict[str, Any]:
    """A JSON object; whole numbers become int.

    Raises:
        OverflowError: more than `max_bytes` as JSON.
        ValueError: holds NaN or an infinity, or is nested too deeply.
    """
    payload = _object(struct, MAX_DEPTH)
    size = len(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())
    if size > max_bytes:
        raise OverflowError(f"{size} bytes of JSON; at most {max_bytes} are allowed")
    return payload


def payload_to_struct(payload: dict[str, Any]) -> Struct:
    """The Struct of a JSON object."""
    struct = Struct()
    write_payload(struct, payload)
    return struct


def write_payload(struct: Struct, payload: dict[str, Any]) -> None:
    """Writes a JSON object into an empty Struct."""
    # Struct.update does the same in twice the time: a search has hundreds of these.
    fields = struct.fields
    for key, value in payload.items():
        _write(fields[key], value)


def _write(target: Value, value: Any) -> None:
    if isinstance(value, str):
        target.string_value = value
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int | float):
        target.number_value = value
    elif value is None:
        target.null_value = NULL_VALUE
    elif isinstance(value, dict):
        target.struct_value.SetInParent()
        write_payload(target.struct_value, value)
    else:
        target.list_value.SetInParent()
        for inner in value:
            _write(target.list_value.values.add(), inner)


def _object(struct: Struct, depth: int) -> dict[str, Any]:
    if not depth:
        raise ValueError(f"is nested more than {MAX_DEPTH} deep")
    return {key: _value(item, depth - 1) for key, item in struct.fields.items()}


def _value(value: Value, depth: int) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise ValueError("holds a number that is not finite")
        return int(number) if number.is_integer() and abs(number) <= LARGEST_WHOLE else number
    if kind == "struct_value":
        return _object(value.struct_value, depth)
    if kind == "list_value":
        if not depth:
            raise ValueError(f"is nested more than {MAX_DEPTH} deep")
        return [_value(item, depth - 1) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)
