"""Datasets and training on them; methods of AsyncClient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hotclip import _datasets as parse
from hotclip._aio.connection import Connection, Duplex
from hotclip._dataset_file import PairSource, names_file, rereadable_rows_of, rows_of
from hotclip._datasets import Dataset, DatasetWriter, content_name
from hotclip._message import made
from hotclip._pairs import Rows, Tolerance, check
from hotclip._reconnect import Attempts
from hotclip._upload_bar import ShowProgress, shown
from hotclip._uploads import UploadProgress, UploadSession
from hotclip.errors import AlreadyExists, Cancelled, HotclipError, NotFound, Unavailable
from hotclip_proto.v1 import dataset_pb2
from hotclip_proto.v1.dataset_pb2 import UploadDatasetRequest, UploadDatasetResponse

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient

# Seconds: an upload may be long.
_UPLOAD_S = 3600.0


async def upload_dataset(
    self: AsyncClient,
    name: str,
    pairs: PairSource,
    *,
    description: str = "",
    max_bad_rows: int = 0,
    max_bad_share: float = 0.0,
    progress: ShowProgress = False,
    resume: str = "",
    timeout: float | None = _UPLOAD_S,
) -> Dataset:
    """Stores pairs of texts and images, or labelled images, under a name.

    A broken connection is made again and the upload goes on where it was, also after a restart
    of the server. Memory stays bounded: images are read one at a time, and each content is
    sent once.

    Args:
        name: 1 to 128 of [A-Za-z0-9._-]; empty: the dataset's id.
        pairs: (text, image) or (image, text) tuples or Pair objects; or the pathlib.Path of a
            CSV, JSON lines or WebDataset file, whose columns DatasetFile describes; or a
            DatasetFile. Paths in a file start from its folder. What can be gone through more
            than once is checked as a whole before anything is sent.
        description: Free text.
        max_bad_rows: Bad rows with which the others are stored. The dataset's report lists
            them.
        max_bad_share: Likewise, as a share of all rows, 0 to 1; the larger of the two holds.
        progress: True: a progress bar on stderr. Or a function that gets an UploadProgress
            whenever the server has made more safe.
        resume: Id of an upload that broke off: UploadProgress.upload, or
            error.metadata["upload"]. The pairs must be the same; what the server has is read
            again and not sent again.
        timeout: Seconds; None: the client's default.

    Raises:
        InvalidArgument: Too many bad rows, each named by line or position in `fields` (reason
            PAIRS_INVALID, or DATASET_INVALID if it was the server that refused them).
        AlreadyExists: The name belongs to other content.
        NotFound: No such upload to resume (reason UPLOAD_NOT_FOUND).
        FailedPrecondition: It holds other data (reason UPLOAD_CHANGED).
        ResourceExhausted: Too large, or the server's disk is full.
        Unavailable: No connection for too long; metadata["upload"] names what to resume.
    """
    tolerance, rows = Tolerance(max_bad_rows, max_bad_share), rows_of(pairs)
    return await _upload(
        self,
        name,
        rows,
        description=description,
        tolerance=tolerance,
        progress=shown(progress, name),
        resume=resume,
        timeout=timeout,
    )


async def _upload(
    self: AsyncClient,
    name: str,
    rows: Rows,
    *,
    description: str,
    tolerance: Tolerance,
    progress: Callable[[UploadProgress], None],
    resume: str,
    timeout: float | None,
) -> Dataset:
    connection = self._connection
    deadline = connection.deadline(timeout)
    total = await connection.run(partial(check, rows, tolerance)) if rows.rereadable else None
    limits = await connection.limits(deadline)
    session = UploadSession(
        name, description, rows, limits, tolerance, total_rows=total, resume=resume
    )
    method, attempts = connection.stubs().datasets.UploadDataset, Attempts()
    try:
        while session.dataset is None:
            try:
                async with connection.duplex(method, deadline) as link:
                    await _converse(connection, link, session, attempts, progress)
            except (Unavailable, Cancelled) as error:
                await connection.sleep(deadline.pause(attempts.pause(error)))
    except HotclipError as error:
        session.name_in(error)
        raise
    return parse.dataset(session.dataset)


async def _converse(
    connection: Connection,
    link: Duplex[UploadDatasetRequest, UploadDatasetResponse],
    session: UploadSession,
    attempts: Attempts,
    progress: Callable[[UploadProgress], None],
) -> None:
    """Uploads over one connection, to the end if it lasts."""
    await link.send(session.opening())
    while session.dataset is None:
        reply = await link.receive()
        if reply is None:
            raise Unavailable("the server ended the stream", reason="STREAM_ENDED")
        if await connection.run(partial(session.take, reply)):
            attempts.progressed()
            progress(session.progress)
        while session.room:
            await link.send(await connection.run(session.next))


async def dataset_for(
    self: AsyncClient, data: str | PairSource, progress: ShowProgress = False
) -> str:
    """The name of a dataset with this data: a str is one; anything else is uploaded if new."""
    if isinstance(data, str):
        if await self._connection.run(partial(names_file, data)):
            try:
                await get_dataset(self, data)
            except NotFound as error:
                raise parse.no_dataset(data) from error
        return data
    # Gone through three times: to check it, to name it, to send it.
    rows = await self._connection.run(partial(rereadable_rows_of, data))
    await self._connection.run(partial(check, rows, Tolerance()))
    name = await self._connection.run(partial(content_name, rows))
    try:
        found = await get_dataset(self, name)
    except NotFound:
        pass
    else:
        return found.name
    try:
        found = await _upload(
            self,
            name,
            rows,
            description="",
            tolerance=Tolerance(),
            progress=shown(progress, name),
            resume="",
            timeout=_UPLOAD_S,
        )
    except AlreadyExists as error:  # the same content has another name
        if "dataset" not in error.metadata:
            raise
        return error.metadata["dataset"]
    return found.name


async def get_dataset(self: AsyncClient, dataset: str, *, timeout: float | None = None) -> Dataset:
    """A dataset by id or name. Raises NotFound."""
    connection = self._connection
    request = made(dataset_pb2.GetDatasetRequest, dataset=dataset)
    stub = connection.stubs().datasets
    return parse.dataset(
        await connection.call(stub.GetDataset, request, connection.deadline(timeout))
    )


async def list_datasets(self: AsyncClient, *, timeout: float | None = None) -> list[Dataset]:
    """All datasets, newest first."""
    connection, found, token = self._connection, list[Dataset](), ""
    deadline = connection.deadline(timeout)
    while True:
        request = made(dataset_pb2.ListDatasetsRequest, page_token=token)
        reply = await connection.call(connection.stubs().datasets.ListDatasets, request, deadline)
        found += map(parse.dataset, reply.datasets)
        token = reply.next_page_token
        if not token:
            return found


async def delete_dataset(self: AsyncClient, dataset: str, *, timeout: float | None = None) -> None:
    """Removes a dataset. Raises NotFound, or FailedPrecondition (reason DATASET_IN_USE)."""
    connection = self._connection
    request = made(dataset_pb2.DeleteDatasetRequest, dataset=dataset)
    stub = connection.stubs().datasets
    await connection.call(stub.DeleteDataset, request, connection.deadline(timeout))


async def download_dataset(
    self: AsyncClient, dataset: str, directory: Path | str, *, timeout: float | None = _UPLOAD_S
) -> Path:
    """Writes a dataset as images/ and pairs.jsonl into a new or empty folder.

    Returns:
        The path of pairs.jsonl, which upload_dataset takes.

    Raises:
        NotFound: No such dataset.
        InvalidArgument: The folder is not empty.
        DataLoss: An image is damaged or missing.
    """
    connection = self._connection
    request = made(dataset_pb2.DownloadDatasetRequest, dataset=dataset)
    stream = connection.watch(
        connection.stubs().datasets.DownloadDataset, request, connection.deadline(timeout)
    )
    writer = DatasetWriter(Path(directory))
    try:
        async for message in stream:
            await connection.run(partial(writer.accept, message))
    finally:
        writer.close()
        await stream.aclose()
    return writer.finish()
