"""DatasetService: the wire side of stored datasets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import grpc

from hotclip_proto.v1 import dataset_pb2, dataset_pb2_grpc
from hotclip_server.datasets.records import DatasetRecord, Sent, UploadTerms
from hotclip_server.datasets.report import BadRow, DatasetInvalid, DatasetReport
from hotclip_server.datasets.rows import Row
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.datasets.upload import LONGEST_REMARK, DatasetUpload
from hotclip_server.errors import FieldViolation, HotclipError, InvalidArgument
from hotclip_server.jobs.store import timestamp
from hotclip_server.services.paging import PageRequest, invalid_token
from hotclip_server.storage.database import now
from hotclip_server.training.pairs import Pair

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
LONGEST_DESCRIPTION = 4096
LONGEST_REQUEST_ID = 128
PAIRS_A_MESSAGE = 1024
ACKNOWLEDGED_SHARE = 0.25
"""Of the window: how much may come before it is made safe and acknowledged."""
MOST_NOTES = 64
"""Notes of a caller that are kept."""

Context = grpc.aio.ServicerContext[Any, Any]


class DatasetService(dataset_pb2_grpc.DatasetServiceServicer):
    """See dataset.proto."""

    def __init__(self, datasets: DatasetStore) -> None:
        self._datasets = datasets

    async def UploadDataset(  # noqa: N802 - named by the proto
        self, request_iterator: AsyncIterator[dataset_pb2.UploadDatasetRequest], context: Context
    ) -> AsyncIterator[dataset_pb2.UploadDatasetResponse]:
        """Stores the stream's rows and images; what a broken one has sent waits for another."""
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("part") != "open":
            raise InvalidArgument.field("open", "must be in the first message")
        try:
            async for response in self._upload(first.open, request_iterator):
                yield response
        except DatasetInvalid as error:
            yield dataset_pb2.UploadDatasetResponse(refused=report_to_proto(error.report))
            raise

    async def _upload(
        self,
        opening: dataset_pb2.DatasetOpen,
        requests: AsyncIterator[dataset_pb2.UploadDatasetRequest],
    ) -> AsyncIterator[dataset_pb2.UploadDatasetResponse]:
        upload = await self._open(opening)
        if isinstance(upload, DatasetRecord):
            yield dataset_pb2.UploadDatasetResponse(dataset=dataset_to_proto(upload))
            return
        try:
            yield self._accepted(upload)
            async for response in self._receive(upload, requests):
                yield response
        finally:
            self._datasets.leave(upload)

    async def _open(self, opening: dataset_pb2.DatasetOpen) -> DatasetUpload | DatasetRecord:
        if opening.upload:
            return await self._datasets.resume(opening.upload)
        return await self._datasets.begin(_terms(opening))

    def _accepted(self, upload: DatasetUpload) -> dataset_pb2.UploadDatasetResponse:
        limits = self._datasets.limits
        return dataset_pb2.UploadDatasetResponse(
            accepted=dataset_pb2.UploadAccepted(
                upload=upload.id,
                parts=upload.parts,
                digest=upload.digest,
                window_bytes=limits.window_bytes,
                expire_time=timestamp(now() + timedelta(seconds=limits.upload_expiry_s)),
            )
        )

    async def _receive(
        self, upload: DatasetUpload, requests: AsyncIterator[dataset_pb2.UploadDatasetRequest]
    ) -> AsyncIterator[dataset_pb2.UploadDatasetResponse]:
        unsafe = 0
        try:
            async for request in requests:
                if request.WhichOneof("part") == "close":
                    # The stream is complete: it is stored even if the caller leaves now.
                    commit = self._datasets.commit(upload, _sent(request.close))
                    record = await asyncio.shield(asyncio.create_task(commit))
                    yield dataset_pb2.UploadDatasetResponse(dataset=dataset_to_proto(record))
                    return
                await self._add(upload, request)
                unsafe += request.ByteSize()
                if unsafe >= self._datasets.limits.window_bytes * ACKNOWLEDGED_SHARE:
                    parts, unsafe = await self._datasets.run(upload.checkpoint), 0
                    safe = dataset_pb2.UploadAcknowledged(parts=parts)
                    yield dataset_pb2.UploadDatasetResponse(acknowledged=safe)
        except HotclipError as error:
            await self._datasets.refuse(upload, error)
            raise
        # gRPC ends the messages of a broken stream like those of a complete one.
        raise InvalidArgument.field(
            "close", "the stream ended without it", reason="UPLOAD_INCOMPLETE"
        )

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
        run = self._datasets.run
        match request.WhichOneof("part"):
            case "image":
                await run(upload.add_image, request.image.key, request.image.data)
            case "pair":
                await run(upload.add_rows, [_row(request.pair)])
            case "pairs":
                # A message may hold millions: they are read off the loop.
                await run(lambda: upload.add_rows([_row(pair) for pair in request.pairs.pairs]))
            case "rejected":
                await run(lambda: upload.add_rejected(_bad_rows(request.rejected)))
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
        report=report_to_proto(record.report) if record.report else None,
    )


def report_to_proto(report: DatasetReport) -> dataset_pb2.DatasetReport:
    """As the wire has it."""
    values = asdict(report)
    values["listed"] = [dataset_pb2.RejectedRow(**row) for row in values["listed"]]
    return dataset_pb2.DatasetReport(**values)


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


def _terms(opening: dataset_pb2.DatasetOpen) -> UploadTerms:
    violations = [
        FieldViolation(f"open.{violation.field}", violation.reason)
        for violation in name_violations(opening.name, opening.description)
    ]
    if not 0 <= opening.max_bad_share <= 1:
        violations.append(
            FieldViolation("open.max_bad_share", f"must be within 0..1, is {opening.max_bad_share}")
        )
    if violations:
        raise InvalidArgument.fields(violations)
    return UploadTerms(
        name=opening.name,
        description=opening.description,
        max_bad_rows=opening.max_bad_rows,
        max_bad_share=opening.max_bad_share,
    )


def _sent(close: dataset_pb2.DatasetClose) -> Sent:
    notes = tuple(note[:LONGEST_REMARK] for note in close.notes[:MOST_NOTES])
    return Sent(pairs=close.pairs, images=close.images, digest=close.digest, notes=notes)


def _bad_rows(rejected: dataset_pb2.RejectedRows) -> list[BadRow]:
    return [BadRow(row.where, row.field, row.reason) for row in rejected.rows]


def _row(pair: dataset_pb2.DatasetPair) -> Row:
    return Row(
        pair.image_key,
        pair.text,
        pair.group,
        pair.label,
        pair.score if pair.HasField("score") else 1.0,
        tuple(pair.negative_texts),
        tuple(pair.negative_image_keys),
        pair.where,
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
