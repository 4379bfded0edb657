"""Reading a collection while it may flip to another shard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from hotclip_server.errors import NotFound
from hotclip_server.search.catalogue import Catalogue
from hotclip_server.search.records import CollectionRecord

T = TypeVar("T")


async def on_live_shard(
    catalogue: Catalogue, name: str, read: Callable[[CollectionRecord], Awaitable[T]]
) -> T:
    """Runs `read` with the collection as it is; again if a flip dropped its shard meanwhile.

    Raises:
        NotFound: no such collection.
        Whatever `read` raises.
    """
    while True:
        record = catalogue.get(name)
        try:
            return await read(record)
        except NotFound as error:
            moved = catalogue.get(name).shard != record.shard
            if error.reason != "SHARD_NOT_FOUND" or not moved:
                raise
