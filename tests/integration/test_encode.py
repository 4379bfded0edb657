"""Encode, EncodeStream and Rank against a real server process of the built-in model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import open_clip
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray
from PIL import Image
from support.pictures import encoded, every_mode, photograph
from support.server import ServerProcess

from hotclip_proto.v1 import encode_pb2, encode_pb2_grpc, types_pb2

Item = types_pb2.EncodeItem
Request = encode_pb2.EncodeRequest
TEXTS = ["a red fox", "ein roter Fuchs", "🦊", "a " * 200, "café", "x"]
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> Iterator[encode_pb2_grpc.EncodeServiceStub]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options) as channel:
        yield encode_pb2_grpc.EncodeServiceStub(channel)


@pytest.fixture(scope="module")
def reference(stub, server: ServerProcess) -> Any:
    """Plain open_clip on the files of the version that serves."""
    version = stub.Encode(Request(items=[Item(text="x")]), timeout=TIMEOUT_S).version
    name = f"local-dir:{server.data_dir / 'versions' / version}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def rows(response: encode_pb2.EncodeResponse) -> NDArray[np.floating]:
    block = response.vectors
    element = "<f2" if block.dtype == types_pb2.D_TYPE_FLOAT16 else "<f4"
    return np.frombuffer(block.data, element).reshape(block.count, block.dim)


def info_of(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, list[str]]:
    """The ErrorInfo of a refused call, and the fields that it names."""
    info, names = error_details_pb2.ErrorInfo(), []
    for detail in rpc_status.from_call(error).details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            names += [violation.field for violation in bad.field_violations]
        else:
            detail.Unpack(info)
    assert info.domain == "hotclip"
    return info, names


def refused(call: Any, code: grpc.StatusCode) -> tuple[error_details_pb2.ErrorInfo, list[str]]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() is code
    return info_of(error.value)


def assert_parity(
    ours: NDArray[np.floating],
    theirs: torch.Tensor,
    *,
    cosine: float = 0.99999,
    distance: float = 0.01,
) -> None:
    """Vectors equal open_clip's as far as fp32 goes."""
    expected = torch.nn.functional.normalize(theirs, dim=-1).numpy()
    assert (ours * expected).sum(axis=1).min() >= cosine
    apart = np.linalg.norm(expected[:, None] - expected[None], axis=-1)
    typical = np.median(apart[np.triu_indices(len(expected), 1)])
    assert np.linalg.norm(ours - expected, axis=1).max() <= distance * typical
    assert (np.argmax(ours @ expected.T, axis=1) == np.arange(len(expected))).all()


def test_texts_equal_open_clips(stub, reference):
    model, _, tokenizer = reference
    response = stub.Encode(Request(items=[Item(text=text) for text in TEXTS]), timeout=TIMEOUT_S)
    with torch.no_grad():
        assert_parity(rows(response), model.encode_text(tokenizer(TEXTS)))
    assert response.timings.total_us > 0
    assert not response.errors


def test_images_of_every_format_equal_open_clips(stub, reference):
    model, preprocess, _ = reference
    files = [encoded(photograph(n), kind) for n, kind in enumerate(("JPEG", "PNG", "WEBP") * 4)]
    response = stub.Encode(Request(items=[Item(image=file) for file in files]), timeout=TIMEOUT_S)
    pixels = torch.stack([preprocess(Image.open(io.BytesIO(file))) for file in files])
    with torch.no_grad():
        # Some pixels of a resized image are one level off, which the towers pass on.
        expected = model.encode_image(pixels)
        assert_parity(rows(response), expected, cosine=0.9999, distance=0.02)


def test_every_mode_of_image_is_taken(stub):
    files = every_mode()
    response = stub.Encode(Request(items=[Item(image=f) for f in files.values()]), timeout=60)
    assert not response.errors
    assert np.linalg.norm(rows(response), axis=1) == pytest.approx(1, abs=1e-4)


def test_a_mixed_list_keeps_its_order(stub):
    images = [encoded(photograph(n)) for n in range(3)]
    mixed = [Item(text="one"), Item(image=images[0]), Item(text="two"), Item(image=images[1])]
    together = rows(stub.Encode(Request(items=mixed), timeout=TIMEOUT_S))
    for row, item in zip(together, mixed, strict=True):
        alone = rows(stub.Encode(Request(items=[item]), timeout=TIMEOUT_S))[0]
        assert float(row @ alone) > 0.99999


def test_float16(stub):
    request = Request(items=[Item(text="a red fox")])
    full = rows(stub.Encode(request, timeout=TIMEOUT_S))
    request.dtype = types_pb2.D_TYPE_FLOAT16
    half = stub.Encode(request, timeout=TIMEOUT_S)
    assert len(half.vectors.data) == 2 * half.vectors.dim
    assert np.abs(rows(half) - full).max() < 1e-3


def test_one_corrupt_image_in_32(stub):
    files = [encoded(photograph(n, 64, 64), "JPEG") for n in range(32)]
    files[17] = files[17][:200]
    response = stub.Encode(Request(items=[Item(image=file) for file in files]), timeout=TIMEOUT_S)
    (error,) = response.errors
    assert (error.index, error.code, error.reason) == (17, 3, "IMAGE_UNREADABLE")
    norms = np.linalg.norm(rows(response), axis=1)
    assert norms[17] == 0
    assert np.delete(norms, 17) == pytest.approx(1, abs=1e-4)


def test_items_over_a_limit_fail_alone(stub):
    items = [Item(text="x" * 8193), Item(text="x" * 8192), Item(text=""), Item(image=b"GIF89a")]
    response = stub.Encode(Request(items=items), timeout=TIMEOUT_S)
    reasons = {error.index: error.reason for error in response.errors}
    assert reasons == {0: "TEXT_TOO_LONG", 2: "TEXT_EMPTY", 3: reasons[3]}
    assert reasons[3] in ("IMAGE_FORMAT", "IMAGE_UNREADABLE")


def test_bad_requests_are_refused_with_the_field(stub):
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    _, fields = refused(lambda: stub.Encode(Request(), timeout=TIMEOUT_S), invalid)
    assert fields == ["items"]
    empty = Request(items=[Item(text="x"), Item()])
    _, fields = refused(lambda: stub.Encode(empty, timeout=TIMEOUT_S), invalid)
    assert fields == ["items[1]"]
    for field in ("dtype", "priority", "truncate"):
        odd = Request(items=[Item(text="x")], **{field: 99})
        _, fields = refused(lambda odd=odd: stub.Encode(odd, timeout=TIMEOUT_S), invalid)
        assert fields == [field]


def test_pins(stub):
    item = Item(text="x")
    live = stub.Encode(Request(items=[item]), timeout=TIMEOUT_S)
    pinned = Request(items=[item], version=live.version, expected_space_id=live.space_id)
    assert stub.Encode(pinned, timeout=TIMEOUT_S).version == live.version
    absent = Request(items=[item], version="0" * 16)
    refused(lambda: stub.Encode(absent, timeout=TIMEOUT_S), grpc.StatusCode.NOT_FOUND)
    other = Request(items=[item], expected_space_id="elsewhere")
    info, _ = refused(
        lambda: stub.Encode(other, timeout=TIMEOUT_S), grpc.StatusCode.FAILED_PRECONDITION
    )
    assert info.reason == "SPACE_MISMATCH"


def test_requests_over_a_limit_are_refused(stub):
    many = Request(items=[Item(text="x")] * 1025)
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    info, _ = refused(lambda: stub.Encode(many, timeout=TIMEOUT_S), exhausted)
    assert info.reason == "TOO_MANY_ITEMS"
    large = Request(items=[Item(image=bytes(17 << 20))])
    with pytest.raises(grpc.RpcError) as error:
        stub.Encode(large, timeout=TIMEOUT_S)
    assert error.value.code() is exhausted


def test_a_full_request(stub):
    texts = [f"number {n}" for n in range(1024)]
    response = stub.Encode(Request(items=[Item(text=text) for text in texts]), timeout=TIMEOUT_S)
    vectors = rows(response)
    assert vectors.shape[0] == 1024
    one = rows(stub.Encode(Request(items=[Item(text=texts[777])]), timeout=TIMEOUT_S))[0]
    assert float(vectors[777] @ one) > 0.99999


def test_deadlines_and_cancellations_leave_the_server_well(stub):
    request = Request(items=[Item(text=f"late {n}") for n in range(512)])
    for _ in range(10):
        with pytest.raises(grpc.RpcError) as error:
            stub.Encode(request, timeout=0.004)
        # Refused at once where the prediction says that it can't be in time.
        late = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        assert error.value.code() in late
    calls = [stub.Encode.future(request, timeout=TIMEOUT_S) for _ in range(10)]
    for call in calls:
        call.cancel()
    assert len(rows(stub.Encode(Request(items=[Item(text="still here")]), timeout=10))) == 1


def test_a_stream_answers_in_order_and_survives_bad_requests(stub):
    def requests() -> Iterator[encode_pb2.EncodeStreamRequest]:
        for number in range(100):
            items = [Item(text=f"{number}/{n}") for n in range(number % 5)]
            yield encode_pb2.EncodeStreamRequest(id=number, request=Request(items=items))

    first, *answers = stub.EncodeStream(requests(), timeout=TIMEOUT_S)
    assert first.limits.max_in_flight == 16
    assert [event.answer.id for event in answers] == list(range(100))
    for event in answers:
        if event.answer.id % 5:
            assert event.answer.response.vectors.count == event.answer.id % 5
            assert event.answer.response.version
        else:
            assert event.answer.error.reason == "INVALID_ARGUMENT"


def test_rank(stub):
    request = encode_pb2.RankRequest(
        query=Item(text="a red fox"),
        candidates=[Item(text="a blue house"), Item(text="a red fox"), Item(text="winter")],
    )
    response = stub.Rank(request, timeout=TIMEOUT_S)
    assert response.scores[0].index == 1
    assert response.scores[0].cosine == pytest.approx(1, abs=1e-4)
    assert sum(score.probability for score in response.scores) == pytest.approx(1, abs=1e-4)
    bad = encode_pb2.RankRequest(query=Item(text="x"), candidates=[Item(image=b"no image")])
    _, fields = refused(lambda: stub.Rank(bad, timeout=TIMEOUT_S), grpc.StatusCode.INVALID_ARGUMENT)
    assert fields == ["candidates[0]"]
    bad = encode_pb2.RankRequest(candidates=[Item(text="x")])
    _, fields = refused(lambda: stub.Rank(bad, timeout=TIMEOUT_S), grpc.StatusCode.INVALID_ARGUMENT)
    assert fields == ["query"]
