"""What Encode may be asked for besides plain vectors, from the client to a real server and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from support.pictures import encoded, photograph
from support.server import ServerProcess, start_server

from hotclip import Client, Embeddings, Image
from hotclip.errors import InvalidArgument, ItemsFailed, SpaceMismatch

ITEMS = ["a red fox", "ein roter Fuchs", encoded(photograph(1)), encoded(photograph(2))]


@pytest.fixture(scope="module", params=["one process", "front ends"])
def serving(
    request: pytest.FixtureRequest, server: ServerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    if request.param == "one process":
        yield server
        return
    data = tmp_path_factory.mktemp("frontends") / "data"
    with start_server(data, "--device", "cpu", "--frontends", "2") as running:
        yield running


@pytest.fixture(scope="module")
def client(serving: ServerProcess) -> Iterator[Client]:
    with Client(serving.address) as client:
        yield client


@pytest.fixture(scope="module")
def exact(client: Client) -> Embeddings:
    return client.encode(ITEMS)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("dtype", "bits", "error"), [("float32", 32, 1e-6), ("float16", 16, 3e-4), ("int8", 8, 3e-3)]
)
def test_types_are_as_small_and_as_near_as_they_say(
    client: Client, exact: Embeddings, dtype: str, bits: int, error: float
) -> None:
    vectors = client.encode(ITEMS, dtype=dtype)
    assert vectors.nbytes * 8 == bits * exact.size
    assert (vectors.space_id, vectors.version) == (exact.space_id, exact.version)
    np.testing.assert_allclose(vectors.dequantize(), exact, atol=error)


def test_timings_add_up(client: Client) -> None:
    items = [f"nobody asked for this {n}" for n in range(40)]
    spent = client.encode(items).timings
    assert spent is not None
    assert 0 < spent.compute_s <= spent.total_s
    assert 0 <= spent.queue_s <= spent.total_s
    assert spent.preprocess_s > 0
    assert client.encode(items)[:3].timings is None


def test_signs(client: Client, exact: Embeddings) -> None:
    vectors = client.encode(ITEMS, dtype="binary")
    assert (vectors.shape, vectors.dim) == ((4, exact.shape[1] // 8), exact.shape[1])
    np.testing.assert_array_equal(vectors, np.packbits(exact > 0, axis=1))


def test_raw_features_have_the_towers_length(client: Client, exact: Embeddings) -> None:
    raw = client.encode(ITEMS, normalize=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.01
    np.testing.assert_allclose(unit(raw), exact, atol=1e-6)
    assert raw.space_id == exact.space_id
    codes = client.encode(ITEMS, normalize=False, dtype="int8").dequantize()
    np.testing.assert_allclose(codes, raw, atol=float(np.abs(raw).max()) / 250)
    np.testing.assert_array_equal(
        client.encode(ITEMS, normalize=False, dtype="binary"), client.encode(ITEMS, dtype="binary")
    )


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_fewer_dimensions_are_a_space_of_their_own(
    client: Client, exact: Embeddings, dtype: str
) -> None:
    cut = client.encode(ITEMS, dimensions=60, dtype=dtype)
    assert (cut.shape, cut.dim) == ((4, 60), 60)
    np.testing.assert_allclose(cut.dequantize(), unit(exact[:, :60]), atol=0.005)
    assert cut.space_id != exact.space_id
    again = client.encode(ITEMS[0], dimensions=60, expected_space_id=cut.space_id)
    np.testing.assert_allclose(again, cut[0].dequantize(), atol=0.005)
    raw = client.encode(ITEMS, dimensions=60, normalize=False)
    np.testing.assert_allclose(unit(raw), unit(exact[:, :60]), atol=1e-6)
    whole = client.encode(ITEMS, dimensions=exact.shape[1])
    assert whole.space_id == exact.space_id
    for wrong in ({"dimensions": 59}, {}):
        with pytest.raises(SpaceMismatch):
            client.encode(ITEMS[0], expected_space_id=cut.space_id, **wrong)
    with pytest.raises(InvalidArgument) as caught:
        client.encode(ITEMS[0], dimensions=exact.shape[1] + 1)
    assert [v.field for v in caught.value.fields] == ["dimensions"]
    with pytest.raises(InvalidArgument, match="dimensions"):
        client.encode(ITEMS[0], dimensions=4096, expected_space_id=cut.space_id)


def test_a_cut_vector_finds_nothing_in_a_whole_collection(client: Client) -> None:
    client.create_collection("wire")
    client.upsert("wire", [("fox", ITEMS[2])])
    assert client.search("wire", client.encode(ITEMS[2], dtype="int8"))[0].id == "fox"
    with pytest.raises(SpaceMismatch):
        client.search("wire", client.encode(ITEMS[2], dimensions=60))
    client.delete_collection("wire")


def test_either_end_of_a_long_text_is_kept(client: Client) -> None:
    words = [f"word{n}" for n in range(200)]
    text, start, end = " ".join(words), " ".join(words[:100]), " ".join(words[100:])
    kept = {how: client.encode(text, truncate=how) for how in ("end", "start")}
    np.testing.assert_allclose(kept["end"], client.encode(start), atol=1e-6)
    np.testing.assert_allclose(kept["start"], client.encode(end, truncate="start"), atol=1e-6)
    assert float(kept["end"] @ kept["start"]) < 0.99
    with pytest.raises(ItemsFailed) as caught:
        client.encode(["short", text], truncate="none")
    assert [(e.index, e.reason) for e in caught.value.errors] == [(1, "TEXT_TOO_LONG")]
    short = client.encode("short", truncate="none")
    np.testing.assert_allclose(short, client.encode("short"), atol=1e-6)


def test_a_stream_takes_the_same_options(client: Client) -> None:
    got = list(
        client.encode_stream(
            [*ITEMS, " ".join(["word"] * 200)],
            dtype="int8",
            dimensions=32,
            truncate="none",
            on_error="return",
            batch_size=2,
        )
    )
    whole = client.encode(ITEMS, dtype="int8", dimensions=32)
    for item, row in zip(got, whole, strict=False):
        np.testing.assert_allclose(item.vector.dequantize(), row.dequantize(), atol=0.01)
        assert (item.space_id, item.vector.space_id) == (whole.space_id, whole.space_id)
    assert got[-1].error is not None
    assert got[-1].error.reason == "TEXT_TOO_LONG"
    assert not got[-1].vector.dequantize().any()


@pytest.mark.parametrize(("query", "candidates"), [(2, [0, 1]), (0, [2, 3]), (0, [1, 2, 3])])
def test_rank_is_cosine_and_softmax(
    client: Client, exact: Embeddings, query: int, candidates: list[int]
) -> None:
    ranking = client.rank(
        ITEMS[query],
        [ITEMS[at] for at in candidates],
        expected_space_id=exact.space_id,
        priority="bulk",
    )
    cosines = np.asarray(exact[candidates] @ exact[query])
    assert [s.index for s in ranking.scores] == list(np.argsort(-cosines))
    for score in ranking.scores:
        assert score.cosine == pytest.approx(float(cosines[score.index]), abs=1e-5)
    probabilities = np.array([score.probability for score in ranking.scores], np.float64)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    logits = np.log(probabilities)
    falling = np.array([score.cosine for score in ranking.scores])
    scale = (logits[0] - logits[-1]) / (falling[0] - falling[-1])
    assert 1 < scale < 101  # the temperature that CLIP learns, cut off at 100
    assert ranking.space_id == exact.space_id
    assert ranking.timings.total_s > 0


def test_rank_refuses_what_encode_refuses(client: Client) -> None:
    with pytest.raises(SpaceMismatch):
        client.rank("a", ["b"], expected_space_id="0" * 32)
    with pytest.raises(InvalidArgument, match=r"candidates\[1\]"):
        client.rank("a", ["b", "word " * 200], truncate="none")
    with pytest.raises(InvalidArgument, match="query"):
        client.rank("word " * 200, ["b"], truncate="none")


def test_images_resized_here_give_the_same_vectors(client: Client, exact: Embeddings) -> None:
    photographs = [encoded(photograph(n, 640, 480), "JPEG", quality=95) for n in range(4)]
    items = ["a red fox", *photographs, photograph(5, 300, 200), photograph(6, 20, 20)]
    whole = client.encode(items)
    here = client.encode(items, resize="client")
    assert (here @ whole.T).argmax(axis=1).tolist() == list(range(len(items)))
    assert float((here * whole).sum(axis=1).min()) > 0.999
    streamed = list(client.encode_stream(items, resize="client", batch_size=3))
    np.testing.assert_allclose([item.vector for item in streamed], here, atol=1e-5)


def test_pixels_made_for_another_model_are_refused(client: Client) -> None:
    [version] = [v for v in client.server_info().versions if v.live]
    how = version.image_preprocessing
    assert (how.height, how.width) == (version.image_size, version.image_size)
    other = replace(how, id="another")
    picture = encoded(photograph(1, 640, 480), "JPEG")
    with pytest.raises(ItemsFailed) as caught:
        list(client.encode_stream([Image.resized(picture, other)]))
    assert [e.reason for e in caught.value.errors] == ["PREPROCESSING_CHANGED"]
    for resize in ("server", "client"):
        mixed = client.encode(
            ["a fox", Image.resized(picture, other), picture], resize=resize, on_error="return"
        )
        assert [(e.index, e.reason) for e in mixed.errors] == [(1, "PREPROCESSING_CHANGED")]
    own = client.encode(Image.resized(picture, how))
    np.testing.assert_allclose(own, client.encode(picture, resize="client"), atol=1e-5)


def test_front_ends_answer_as_one_process_does(client: Client, server: ServerProcess) -> None:
    with Client(server.address) as one_process:
        expected = one_process.encode(ITEMS)
    vectors = client.encode(ITEMS)
    assert (vectors.version, vectors.space_id) == (expected.version, expected.space_id)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
