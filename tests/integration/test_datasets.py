"""Datasets over gRPC against a real server process."""

from __future__ import annotations

import queue
from collections.abc import Iterator

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
    assert (dataset.report.rows, dataset.report.bad_rows, dataset.report.max_width) == (32, 0, 48)
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
    assert bad_fields(refused.value) == ["pairs[4].text", "pairs[3].image"]


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
        list(stubs.datasets.UploadDataset(iter(messages), timeout=10))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert bad_fields(refused.value) == [field]


@pytest.mark.parametrize(
    ("share", "field"), [(1.5, "open.max_bad_share"), (-0.5, "open.max_bad_share")]
)
def test_terms_are_checked(stubs: Stubs, share: float, field: str) -> None:
    opening = Upload(open=dataset_pb2.DatasetOpen(max_bad_share=share))
    with pytest.raises(grpc.RpcError) as refused:
        list(stubs.datasets.UploadDataset(iter([opening]), timeout=10))
    assert bad_fields(refused.value) == [field]


class Conversation:
    """One stream of an upload, message by message."""

    def __init__(self, stubs: Stubs, opening: dataset_pb2.DatasetOpen) -> None:
        self.requests: queue.SimpleQueue[Upload | None] = queue.SimpleQueue()
        self.call = stubs.datasets.UploadDataset(iter(self.requests.get, None), timeout=30)
        self.requests.put(Upload(open=opening))

    def send(self, *messages: Upload) -> None:
        for message in messages:
            self.requests.put(message)

    def receive(self) -> dataset_pb2.UploadDatasetResponse:
        answer: dataset_pb2.UploadDatasetResponse = next(self.call)
        return answer

    def end(self) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as error:
            list(self.call)
        self.requests.put(None)
        code: grpc.StatusCode = error.value.code()
        return code

    def cut(self) -> None:
        self.call.cancel()
        self.requests.put(None)


def unfinished(server: ServerProcess) -> set[str]:
    return {p.parent.name for p in (server.data_dir / "datasets/uploads").glob("up-*/spool.db")}


def large(image: bytes, mib: int) -> bytes:
    """The same picture in a larger file: what follows the end of a PNG is passed over."""
    return image + bytes(mib << 20)


def test_a_broken_stream_goes_on_where_it_was(stubs: Stubs, server: ServerProcess) -> None:
    pairs = [(large(image, 9 * (i == 2)), text) for i, (image, text) in enumerate(drawn_pairs())]
    opening, *parts, close = upload_messages("broken", pairs)
    first = Conversation(stubs, opening.open)
    accepted = first.receive().accepted
    assert accepted.parts == 0
    assert accepted.upload in unfinished(server)
    first.send(*parts[:5])
    assert first.receive().acknowledged.parts == 3
    first.cut()
    again = dataset_pb2.DatasetOpen(upload=accepted.upload)
    second = Conversation(stubs, again)
    went_on = second.receive().accepted.parts
    assert 3 <= went_on <= 5
    second.send(*parts[went_on:], close)
    dataset = second.receive().dataset
    assert (dataset.pairs, dataset.images, dataset.name) == (32, 32, "broken")
    third = Conversation(stubs, again)
    assert third.receive().dataset.id == dataset.id  # whoever did not hear of the end
    third.cut()
    assert accepted.upload not in unfinished(server)


def test_the_newer_of_two_streams_has_the_upload(stubs: Stubs) -> None:
    opening, *parts, close = upload_messages("two", drawn_pairs()[:5])
    first = Conversation(stubs, opening.open)
    accepted = first.receive().accepted
    second = Conversation(stubs, dataset_pb2.DatasetOpen(upload=accepted.upload))
    assert second.receive().accepted.parts == 0
    first.send(parts[0])
    assert first.end() is grpc.StatusCode.ABORTED
    second.send(*parts, close)
    assert second.receive().dataset.pairs == 5


def test_a_refused_upload_leaves_its_reason_alone(stubs: Stubs, server: ServerProcess) -> None:
    before = unfinished(server)
    opening, *parts, close = upload_messages("refused", [(b"no image", "x"), (b"none", "y")])
    first = Conversation(stubs, opening.open)
    upload = first.receive().accepted.upload
    first.send(*parts, close)
    report = first.receive().refused
    assert [(row.where, row.field) for row in report.listed] == [
        ("pairs[0]", "image"),
        ("pairs[1]", "image"),
    ]
    assert first.end() is grpc.StatusCode.INVALID_ARGUMENT
    assert unfinished(server) == before
    late = Conversation(stubs, dataset_pb2.DatasetOpen(upload=upload))
    assert late.receive().refused == report
    assert late.end() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("upload", ["up-" + "0" * 32, "../../etc", "up-x"])
def test_no_such_upload(stubs: Stubs, upload: str) -> None:
    conversation = Conversation(stubs, dataset_pb2.DatasetOpen(upload=upload))
    assert conversation.end() is grpc.StatusCode.NOT_FOUND


def test_a_checksum_of_something_else(stubs: Stubs, server: ServerProcess) -> None:
    opening, *parts, close = upload_messages("checked", drawn_pairs()[:3])
    close.close.digest = "0" * 64
    with pytest.raises(grpc.RpcError) as refused:
        list(stubs.datasets.UploadDataset(iter([opening, *parts, close]), timeout=30))
    assert bad_fields(refused.value) == ["close.digest"]
