"""DatasetService: the wire side of stored datasets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from itertools import islice
from typing import Any

import grpc

from hotclip_proto.v1 import dataset_pb2, dataset_pb2_grpc
from hotclip_server.datasets.records import DatasetRecord
from hotclip_server.datasets.rows import Row
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.datasets.upload import DatasetUpload
from hotclip_server.errors import FieldViolation, InvalidArgument
from hotclip_server.jobs.store import timestamp
from hotclip_server.services.paging import PageRequest, invalid_token
from hotclip_server.training.pairs import Pair

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
LONGEST_DESCRIPTION = 4096
LONGEST_REQUEST_ID = 128
PAIRS_A_MESSAGE = 1024

Context = grpc.aio.ServicerContext[Any, Any]


class DatasetService(dataset_pb2_grpc.DatasetServiceServicer):
    """See dataset.proto."""

    def __init__(self, datasets: DatasetStore) -> None:
        self._datasets = datasets

    async def UploadDataset(  # noqa: N802 - named by the proto
        self, request_iterator: AsyncIterator[dataset_pb2.UploadDatasetRequest], context: Context
    ) -> dataset_pb2.Dataset:
        """Stores the stream's pairs and images; nothing of a broken one."""
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("part") != "open":
            raise InvalidArgument.field("open", "must be in the first message")
        _check_open(first.open)
        upload = await self._datasets.begin()
        try:
            closed = False
            async for request in request_iterator:
                if closed:
                    raise InvalidArgument.field("close", "must be in the last message")
                closed = request.WhichOneof("part") == "close"
                await self._add(upload, request)
            if not closed:
                # gRPC ends the messages of a broken stream like those of a complete one.
                raise InvalidArgument.field(
                    "close", "the stream ended without it", reason="UPLOAD_INCOMPLETE"
                )
            # The stream is complete: it is stored even if the caller leaves now.
            commit = self._datasets.commit(upload, first.open.name, first.open.description)
            record = await asyncio.shield(asyncio.create_task(commit))
        finally:
            # Without await: this also runs when the call was cancelled.
            asyncio.get_running_loop().run_in_executor(None, upload.discard)
        return dataset_to_proto(record)

    async def GetDataset(  # noqa: N802 - named by the proto
        self, request: dataset_pb2.GetDatasetRequest, context: Context
    ) -> dataset_pb2.Dataset:
        """By id or name."""
        return dataset_to_proto(await self._datasets.get(request.dataset))

    async def ListDatasets(  # noqa: N802 - named by the proto
        self, request: dataset_pb2.ListDatasetsRequest, context: Context
    ) -> dataset_pb2.ListDatasetsResponse:
        """Newest first."""
        page = PageRequest.parse(
            request.page_size, request.page_token, listing="datasets", kinds=(str, str)
        )
        rows = await self._datasets.list(limit=page.size + 1, before=newest_first_key(page))
        rows, token = page.cut(rows, key=lambda row: (row.create_time.isoformat(), row.id))
        return dataset_pb2.ListDatasetsResponse(
            datasets=[dataset_to_proto(row) for row in rows], next_page_token=token
        )

    async def DownloadDataset(  # noqa: N802 - named by the proto
        self, request: dataset_pb2.DownloadDatasetRequest, context: Context
    ) -> AsyncIterator[dataset_pb2.DownloadDatasetResponse]:
        """Open, images, pairs."""
        record = await self._datasets.get(request.dataset)
        stored = await self._datasets.run(self._datasets.load, record.id)
        try:
            parts = _parts(record, stored)
            while (part := await self._datasets.run(next, parts, None)) is not None:
                yield part
        finally:
            stored.close()

    async def DeleteDataset(  # noqa: N802 - named by the proto
        self, request: dataset_pb2.DeleteDatasetRequest, context: Context
    ) -> dataset_pb2.DeleteDatasetResponse:
        """Refused while a job needs it."""
        await self._datasets.delete(request.dataset)
        return dataset_pb2.DeleteDatasetResponse()

    async def _add(self, upload: DatasetUpload, request: dataset_pb2.UploadDatasetRequest) -> None:
        match request.WhichOneof("part"):
            case "close":
                upload.check_complete(request.close.pairs, request.close.images)
            case "image":
                await self._datasets.run(upload.add_image, request.image.key, request.image.data)
            case "pair":
                await self._datasets.run(upload.add_pairs, [_row(request.pair)])
            case "pairs":
                # A message may hold millions: they are read off the loop.
                await self._datasets.run(
                    lambda: upload.add_pairs([_row(pair) for pair in request.pairs.pairs])
                )
            case "open":
                raise InvalidArgument.field("open", "came a second time")
            case _:
                raise InvalidArgument.field("part", "is not set")


def dataset_to_proto(record: DatasetRecord) -> dataset_pb2.Dataset:
    """As the wire has it."""
    return dataset_pb2.Dataset(
        id=record.id,
        name=record.name,
        description=record.description,
        pairs=record.counts.pairs,
        images=record.counts.images,
        texts=record.counts.texts,
        groups=record.counts.groups,
        labels=record.counts.labels,
        uncaptioned_pairs=record.counts.uncaptioned_pairs,
        pairs_with_negatives=record.counts.pairs_with_negatives,
        duplicate_pairs=record.counts.duplicate_pairs,
        size_bytes=record.counts.size_bytes,
        create_time=timestamp(record.create_time),
    )


def newest_first_key(page: PageRequest) -> tuple[datetime, str] | None:
    """The key of pages of things that are listed by creation time and id.

    Raises:
        InvalidArgument: reason PAGE_TOKEN_INVALID.
    """
    if page.after is None:
        return None
    time, identifier = page.after
    try:
        return datetime.fromisoformat(str(time)), str(identifier)
    except ValueError:
        raise invalid_token() from None


def name_violations(name: str, description: str = "") -> Iterator[FieldViolation]:
    """What is wrong with a name and a description that a caller gave."""
    if name and not NAME.fullmatch(name):
        yield FieldViolation("name", "must be 1 to 128 of A-Z a-z 0-9 . _ -")
    size = len(description.encode())
    if size > LONGEST_DESCRIPTION:
        yield FieldViolation("description", f"has {size} bytes, the limit is {LONGEST_DESCRIPTION}")


def request_id_violations(request_id: str) -> Iterator[FieldViolation]:
    """What is wrong with a request id."""
    if len(request_id) > LONGEST_REQUEST_ID:
        yield FieldViolation("request_id", f"is longer than {LONGEST_REQUEST_ID}")


def _check_open(opening: dataset_pb2.DatasetOpen) -> None:
    violations = [
        FieldViolation(f"open.{violation.field}", violation.reason)
        for violation in name_violations(opening.name, opening.description)
    ]
    if violations:
        raise InvalidArgument.fields(violations)


def _row(pair: dataset_pb2.DatasetPair) -> Row:
    return Row(
        pair.image_key,
        pair.text,
        pair.group,
        pair.label,
        pair.score if pair.HasField("score") else 1.0,
        tuple(pair.negative_texts),
        tuple(pair.negative_image_keys),
    )


def _pair_to_proto(pair: Pair) -> dataset_pb2.DatasetPair:
    return dataset_pb2.DatasetPair(
        image_key=pair.image_key,
        text=pair.text,
        group=pair.group or "",
        label=pair.label or "",
        score=None if pair.score == 1 else pair.score,
        negative_texts=pair.negative_texts,
        negative_image_keys=pair.negative_images,
    )


def _parts(
    record: DatasetRecord, stored: StoredDataset
) -> Iterator[dataset_pb2.DownloadDatasetResponse]:
    yield dataset_pb2.DownloadDatasetResponse(
        open=dataset_pb2.DatasetOpen(name=record.name, description=record.description)
    )
    for key in stored.image_keys:
        image = dataset_pb2.DatasetImage(key=key, data=stored.image_bytes(key))
        yield dataset_pb2.DownloadDatasetResponse(image=image)
    pairs = iter(stored.pairs)
    while some := list(islice(pairs, PAIRS_A_MESSAGE)):
        yield dataset_pb2.DownloadDatasetResponse(
            pairs=dataset_pb2.DatasetPairs(pairs=map(_pair_to_proto, some))
        )
