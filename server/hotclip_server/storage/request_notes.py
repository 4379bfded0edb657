"""What a request_id made, for a day: a request that comes again makes nothing new.

Every function runs in the caller's transaction. Notes older than LIFETIME count for nothing, and
are removed whenever another is made; an index on their time makes that cheap.
"""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy import Connection

from hotclip_server.errors import InvalidArgument
from hotclip_server.storage.database import now
from hotclip_server.storage.schema import requests

LIFETIME = timedelta(hours=24)
"""How long a request may come again; the protos say it of each request_id."""


def find(connection: Connection, method: str, request_id: str, fingerprint: str) -> str | None:
    """The resource that a request with this id made within LIFETIME, if any.

    Raises:
        InvalidArgument: the id was used for another request; reason REQUEST_ID_REUSED.
    """
    row = connection.execute(
        sa.select(requests.c.fingerprint, requests.c.resource).where(
            requests.c.method == method,
            requests.c.request_id == request_id,
            requests.c.create_time >= now() - LIFETIME,
        )
    ).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise InvalidArgument.field(
            "request_id", "was used for another request", reason="REQUEST_ID_REUSED"
        )
    return str(row.resource)


def put(
    connection: Connection, method: str, request_id: str, fingerprint: str, resource: str
) -> None:
    """Notes what a request made; an older note of the same id is replaced."""
    time = now()
    same = (requests.c.method == method) & (requests.c.request_id == request_id)
    connection.execute(
        sa.delete(requests).where(sa.or_(same, requests.c.create_time < time - LIFETIME))
    )
    connection.execute(
        sa.insert(requests).values(
            method=method,
            request_id=request_id,
            fingerprint=fingerprint,
            resource=resource,
            create_time=time,
        )
    )
