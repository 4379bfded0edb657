"""Sending an artifact over broken connections."""

from __future__ import annotations

from functools import partial

from hotclip import _artifacts as parse
from hotclip._aio.connection import Connection
from hotclip._artifacts import Artifact, Progress
from hotclip._deadline import Deadline
from hotclip._parcel import Parcel
from hotclip._reconnect import Attempts
from hotclip.errors import Cancelled, OutOfRange, Unavailable
from hotclip_proto.v1 import artifact_pb2

_PART_BYTES = 4 << 20
# Left of a message for everything but the data.
_MARGIN = 16 << 10


async def send(
    connection: Connection, parcel: Parcel, progress: Progress | None, deadline: Deadline
) -> Artifact:
    """Uploads what the server lacks of an archive; errors as Client.import_version."""
    stub, attempts = connection.stubs().artifacts, Attempts()
    sha256 = await connection.run(parcel.sha256)
    limits = await connection.limits(deadline)
    size = min(_PART_BYTES, limits.max_message_bytes - _MARGIN)
    offset: int | None = None  # unknown: ask
    while True:
        try:
            if offset is None:
                asked = artifact_pb2.GetUploadRequest(sha256=sha256)
                reply = await connection.call(stub.GetUpload, asked, deadline)
            else:
                data = await connection.run(partial(parcel.read, offset, size))
                part = artifact_pb2.UploadArtifactRequest(
                    sha256=sha256, total_bytes=parcel.size, offset=offset, data=data
                )
                reply = await connection.call(stub.UploadArtifact, part, deadline)
                attempts.progressed()
        except (Unavailable, Cancelled) as error:
            offset, pause = None, attempts.pause(error)
            await connection.sleep(deadline.pause(pause))
            continue
        except OutOfRange:  # another upload of the same was removed meanwhile
            offset, pause = None, attempts.ended()
            await connection.sleep(deadline.pause(pause))
            continue
        offset = reply.offset
        if progress is not None:
            progress(offset, parcel.size)
        if reply.HasField("artifact"):
            return parse.artifact(reply.artifact)
