"""Which version answers a search that asks for a space."""

from __future__ import annotations

from dataclasses import asdict, replace

from hotclip_server.errors import FailedPrecondition
from hotclip_server.search.encoding import Versions
from hotclip_server.search.records import Binding, CollectionRecord, binding_of


def of_space(record: CollectionRecord, space_id: str, versions: Versions) -> CollectionRecord:
    """The collection as a resident version of this space has it; "" for the bound one.

    Besides the bound version these can answer: the rollback target and that of a complete
    shadow, whose shards get every write; and any version that changes no stored vector.

    Raises:
        FailedPrecondition: there is none; reason SPACE_MISMATCH.
    """
    if space_id in ("", record.space_id):
        return record
    shadow = record.shadow_shard if record.shadow_complete else None
    for version, shard in (
        (record.previous_version, record.previous_shard),
        (record.shadow_version, shadow),
    ):
        if version and shard:
            found = _resident(record.model, versions, version=version)
            if found is not None and found.space_id == space_id:
                return replace(record, **asdict(found), shard=shard)
    found = _resident(record.model, versions, space_id=space_id)
    if found is not None and record.unchanged_by(found):
        return replace(record, **asdict(found))
    raise FailedPrecondition(
        f"collection {record.name!r} is of space {record.space_id}, the request expects {space_id}",
        reason="SPACE_MISMATCH",
        metadata={
            "space_id": record.space_id,
            "version": record.version,
            "expected_space_id": space_id,
        },
    )


def _resident(
    model: str, versions: Versions, *, version: str = "", space_id: str = ""
) -> Binding | None:
    try:
        with versions.pin(model, version, space_id) as pin:
            return binding_of(pin.resident)
    except FailedPrecondition:
        return None
