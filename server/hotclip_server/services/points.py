"""Points of collections between the wire and the domain."""

from __future__ import annotations

from hotclip_proto.v1 import search_pb2
from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.search import wire
from hotclip_server.search.payloads import payload_to_struct
from hotclip_server.search.reader import Fields, ReadPoint, ReadPoints


def fields_from_proto(message: search_pb2.PointFields) -> Fields:
    """What is asked for."""
    return Fields(vectors=message.vectors, sources=message.sources)


def got_to_proto(found: ReadPoints) -> search_pb2.GetPointsResponse:
    """As the wire has a look-up."""
    return search_pb2.GetPointsResponse(
        points=[_stored(point, found.record.space_id) for point in found.points],
        version=found.record.version,
        space_id=found.record.space_id,
    )


def listed_to_proto(found: ReadPoints, token: str) -> search_pb2.ListPointsResponse:
    """As the wire has a page."""
    return search_pb2.ListPointsResponse(
        points=[_stored(point, found.record.space_id) for point in found.points],
        next_page_token=token,
        version=found.record.version,
        space_id=found.record.space_id,
    )


def _stored(point: ReadPoint, space_id: str) -> search_pb2.StoredPoint:
    message = search_pb2.StoredPoint(
        id=point.id, payload=payload_to_struct(point.payload), reference=point.reference
    )
    if point.vector is not None:
        message.vector.data = wire.vectors_to_bytes(point.vector)
        message.vector.space_id = space_id
    if point.source is not None:
        message.source.CopyFrom(EncodeItem.FromString(point.source))
    return message
