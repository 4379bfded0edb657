"""Some images of a collection, as they were given."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.search import records
from hotclip_server.search.blobs import SourceBlobs
from hotclip_server.storage.database import Database

_AT_ONCE = 64  # rows with their images in memory


class ImageSampler:
    """Reads sources on the thread of a job."""

    def __init__(self, database: Database, blobs: SourceBlobs) -> None:
        self._database = database
        self._blobs = blobs

    def sample(self, collection: str, count: int, seed: int) -> Iterator[bytes]:
        """At most so many of its encoded images, which ones by the seed; none without sources.

        Raises:
            DataLoss: a stored image is missing or damaged.
        """
        with self._database.transaction() as connection:
            ids = records.ids_of_kind(connection, collection, "image")
        chosen = random.Random(seed).sample(ids, min(count, len(ids)))
        for start in range(0, len(chosen), _AT_ONCE):
            some = chosen[start : start + _AT_ONCE]
            with self._database.transaction() as connection:
                rows = list(records.sources_of(connection, collection, some))
            for row in rows:
                item = EncodeItem.FromString(row.item or self._blobs.get(row.blob or ""))
                yield item.image
