"""Datasets over gRPC against a real server process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.drawings import drawn_pairs, key_of
from support.learning import Stubs, Upload, upload_messages
from support.server import ServerProcess

from hotclip_proto.v1 import dataset_pb2


@pytest.fixture(scope="module")
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    with grpc.insecure_channel(server.address) as channel:
        yield Stubs(channel)


def bad_fields(error: grpc.RpcError) -> list[str]:
    fields = []
    for detail in rpc_status.from_call(error).details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            fields += [violation.field for violation in bad.field_violations]
    return fields


def test_upload_get_list_download_delete(stubs: Stubs) -> None:
    pairs = drawn_pairs()
    dataset = stubs.upload("round-trip", pairs)
    assert (dataset.name, dataset.description) == ("round-trip", "drawn")
    assert (dataset.pairs, dataset.images, dataset.texts) == (32, 32, 32)
    assert stubs.upload("round-trip", pairs[::-1]) == dataset
    for name in (dataset.id, dataset.name):
        assert stubs.datasets.GetDataset(dataset_pb2.GetDatasetRequest(dataset=name)) == dataset
    other = stubs.upload("other", pairs[:2])
    first = stubs.datasets.ListDatasets(dataset_pb2.ListDatasetsRequest(page_size=1))
    assert [d.id for d in first.datasets] == [other.id]
    second = stubs.datasets.ListDatasets(
        dataset_pb2.ListDatasetsRequest(page_size=1, page_token=first.next_page_token)
    )
    assert [d.id for d in second.datasets] == [dataset.id]

    parts = list(
        stubs.datasets.DownloadDataset(dataset_pb2.DownloadDatasetRequest(dataset="round-trip"))
    )
    assert parts[0].open.name == "round-trip"
    images = {part.image.key: part.image.data for part in parts if part.HasField("image")}
    assert images == {key_of(image): image for image, _ in pairs}
    rows = {(row.image_key, row.text) for part in parts for row in part.pairs.pairs}
    assert rows == {(key_of(image), text) for image, text in pairs}

    for name in ("round-trip", "other"):
        stubs.datasets.DeleteDataset(dataset_pb2.DeleteDatasetRequest(dataset=name))
    with pytest.raises(grpc.RpcError) as gone:
        stubs.datasets.GetDataset(dataset_pb2.GetDatasetRequest(dataset="round-trip"))
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND


def test_bad_rows_are_named(stubs: Stubs) -> None:
    pairs = [*drawn_pairs()[:3], (b"no image at all", "what?"), (drawn_pairs()[0][0], "")]
    with pytest.raises(grpc.RpcError) as refused:
        stubs.upload("bad", pairs)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert bad_fields(refused.value) == ["images[3].data", "pairs[4].text"]


CLOSE = Upload(close=dataset_pb2.DatasetClose())


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "open"),
        ([Upload(pairs=dataset_pb2.DatasetPairs())], "open"),
        ([Upload(open=dataset_pb2.DatasetOpen(name="a b"))], "open.name"),
        ([Upload(open=dataset_pb2.DatasetOpen())] * 2, "open"),
        ([Upload(open=dataset_pb2.DatasetOpen()), Upload()], "part"),
        ([Upload(open=dataset_pb2.DatasetOpen()), CLOSE], "pairs"),
        ([Upload(open=dataset_pb2.DatasetOpen()), CLOSE, CLOSE], "close"),
        ([Upload(open=dataset_pb2.DatasetOpen())], "close"),
        (list(upload_messages("cut", drawn_pairs()[:3]))[:-1], "close"),
        (
            [m for m in upload_messages("cut", drawn_pairs()[:3]) if not m.pairs.pairs],
            "close.pairs",
        ),
    ],
)
def test_malformed_streams(stubs: Stubs, messages: list[Upload], field: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stubs.datasets.UploadDataset(iter(messages), timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert bad_fields(refused.value) == [field]


def test_a_stream_that_breaks_after_whole_rows_stores_nothing(stubs: Stubs) -> None:
    sent, left = threading.Event(), threading.Event()

    def breaks() -> Iterator[Upload]:
        yield from list(upload_messages("broken-late", drawn_pairs()[:4]))[:-1]
        sent.set()
        left.wait(10)

    call = stubs.datasets.UploadDataset.future(breaks(), timeout=30)
    assert sent.wait(10)
    call.cancel()
    left.set()
    with pytest.raises(grpc.RpcError) as unknown:
        stubs.datasets.GetDataset(dataset_pb2.GetDatasetRequest(dataset="broken-late"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def settled(root: Path) -> list[str]:
    """What lies in a folder once no broken upload is left: that is cleared up off the loop."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        names = sorted(entry.name for entry in root.iterdir())
        if not any(name.startswith(".tmp-") for name in names):
            return names
        time.sleep(0.02)
    raise AssertionError(f"temporary folders stay: {names}")


def test_a_broken_stream_leaves_nothing(stubs: Stubs, server: ServerProcess) -> None:
    root = server.data_dir / "datasets"
    before = settled(root)

    def breaks() -> Iterator[Upload]:
        messages = list(upload_messages("broken", drawn_pairs()))
        yield from messages[: len(messages) // 2]
        call.cancel()
        yield from messages[len(messages) // 2 :]

    # The generator reads the name once the call runs.
    call = stubs.datasets.UploadDataset.future(breaks(), timeout=30)
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        call.result()
    with pytest.raises(grpc.RpcError) as unknown:
        stubs.datasets.GetDataset(dataset_pb2.GetDatasetRequest(dataset="broken"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    assert settled(root) == before
