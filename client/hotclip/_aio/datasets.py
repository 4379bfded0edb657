"""Datasets and training on them; methods of AsyncClient."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hotclip import _datasets as parse
from hotclip._datasets import DATASET_INVALID, Dataset, DatasetWriter, Upload, content_name
from hotclip._pairs import ImagePair, PairLike, pairs_of
from hotclip.errors import AlreadyExists, InvalidArgument, NotFound
from hotclip_proto.v1 import dataset_pb2

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient

# Seconds: an upload may be long.
_UPLOAD_S = 3600.0


async def upload_dataset(
    self: AsyncClient,
    name: str,
    pairs: Path | Iterable[PairLike],
    *,
    description: str = "",
    timeout: float | None = _UPLOAD_S,
) -> Dataset:
    """Stores pairs of texts and images under a name.

    Args:
        name: 1 to 128 of [A-Za-z0-9._-]; empty: the dataset's id.
        pairs: (text, image) or (image, text) tuples or Pair objects; or the pathlib.Path of
            a CSV or JSON lines file with a text and an image path (relative to the file)
            in each row. Images are read one at a time and each content is sent once.
        description: Free text.
        timeout: Seconds; None: the client's default.

    Raises:
        InvalidArgument: Bad pairs, each named by line or position (reason PAIRS_INVALID, or
            DATASET_INVALID if it was the server that refused them).
        AlreadyExists: The name belongs to other content.
        ResourceExhausted: Too large.
    """
    checked = await self._connection.run(partial(pairs_of, pairs))
    return await _upload(self, name, checked, description, timeout)


async def _upload(
    self: AsyncClient, name: str, pairs: list[ImagePair], description: str, timeout: float | None
) -> Dataset:
    connection = self._connection
    deadline = connection.deadline(timeout)
    upload = Upload(name, description, pairs, await connection.limits(deadline))
    method = connection.stubs().datasets.UploadDataset
    try:
        return parse.dataset(await connection.send_all(method, upload.requests, deadline))
    except InvalidArgument as error:
        if error.reason != DATASET_INVALID:
            raise
        raise upload.located(error) from error


async def dataset_for(self: AsyncClient, data: str | Path | Iterable[PairLike]) -> str:
    """The name of a dataset with this data: a str is one; anything else is uploaded if new."""
    if isinstance(data, str):
        return data
    pairs = await self._connection.run(partial(pairs_of, data))
    name = await self._connection.run(partial(content_name, pairs))
    try:
        found = await get_dataset(self, name)
    except NotFound:
        pass
    else:
        return found.name
    try:
        found = await _upload(self, name, pairs, "", _UPLOAD_S)
    except AlreadyExists as error:  # the same content has another name
        if "dataset" not in error.metadata:
            raise
        return error.metadata["dataset"]
    return found.name


async def get_dataset(self: AsyncClient, dataset: str, *, timeout: float | None = None) -> Dataset:
    """A dataset by id or name. Raises NotFound."""
    connection = self._connection
    request = dataset_pb2.GetDatasetRequest(dataset=dataset)
    stub = connection.stubs().datasets
    return parse.dataset(
        await connection.call(stub.GetDataset, request, connection.deadline(timeout))
    )


async def list_datasets(self: AsyncClient, *, timeout: float | None = None) -> list[Dataset]:
    """All datasets, newest first."""
    connection, found, token = self._connection, list[Dataset](), ""
    deadline = connection.deadline(timeout)
    while True:
        request = dataset_pb2.ListDatasetsRequest(page_token=token)
        reply = await connection.call(connection.stubs().datasets.ListDatasets, request, deadline)
        found += map(parse.dataset, reply.datasets)
        token = reply.next_page_token
        if not token:
            return found


async def delete_dataset(self: AsyncClient, dataset: str, *, timeout: float | None = None) -> None:
    """Removes a dataset. Raises NotFound, or FailedPrecondition (reason DATASET_IN_USE)."""
    connection = self._connection
    request = dataset_pb2.DeleteDatasetRequest(dataset=dataset)
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
    request = dataset_pb2.DownloadDatasetRequest(dataset=dataset)
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
