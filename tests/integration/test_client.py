"""The client against a real server process of the built-in model."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from support.pictures import encoded, photograph
from support.server import ServerProcess

from hotclip import AsyncClient, Client, Image, Text
from hotclip.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ItemsFailed,
    NotFound,
    SpaceMismatch,
)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        client.wait_ready(timeout=10)
        yield client


@pytest.fixture(scope="module")
def picture_url() -> Iterator[str]:
    """Serves one picture at /ok, and refuses everything else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/ok" else 404)
            self.end_headers()
            if self.path == "/ok":
                self.wfile.write(encoded(photograph(1)))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Says nothing."""

    web = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


def test_every_form_of_an_image_gives_the_same_vector(
    client: Client, tmp_path: Path, picture_url: str
) -> None:
    picture = photograph(1)
    file = tmp_path / "picture.png"
    picture.save(file)
    forms = [
        picture,
        file,
        encoded(picture),
        np.asarray(picture),
        Image.from_path(str(file)),
        Image.from_url(f"{picture_url}/ok"),
    ]
    vectors = client.encode(forms)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(vectors, np.tile(vectors[0], (len(forms), 1)), atol=1e-5)


def test_text_is_never_a_file_name(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    photograph(1).save(file)
    as_text, explicit, as_image = client.encode([str(file), Text(str(file)), file])
    np.testing.assert_allclose(as_text, explicit, atol=1e-6)
    assert float(np.dot(as_text, as_image)) < 0.99


def test_pixels_of_the_models_size(client: Client) -> None:
    size = client.server_info().versions[0].image_size
    pixels = np.asarray(photograph(2, size, size))
    same, decoded = client.encode([Image.from_pixels(pixels), pixels])
    np.testing.assert_allclose(same, decoded, atol=1e-5)


def test_half_precision_halves_the_wire_and_stays_close(client: Client) -> None:
    full, half = client.encode("a red fox"), client.encode("a red fox", dtype=np.float16)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, full, atol=2e-3)
    assert half.space_id == full.space_id


def test_bad_items_are_named(client: Client, picture_url: str, tmp_path: Path) -> None:
    items = ["a", b"no image", tmp_path / "none.jpg", Image.from_url(f"{picture_url}/no"), "b"]
    with pytest.raises(ItemsFailed) as caught:
        client.encode(items)
    assert [e.index for e in caught.value.errors] == [1, 2, 3]
    vectors = client.encode(items, on_error="return")
    assert [e.index for e in vectors.errors] == [1, 2, 3]
    assert not vectors[1:4].any()
    np.testing.assert_allclose(vectors[[0, 4]], client.encode(["a", "b"]), atol=1e-6)


def test_long_lists_are_split(client: Client) -> None:
    texts = [f"thing {i}" for i in range(2500)]
    vectors = client.encode(texts)
    assert len(vectors) == 2500
    np.testing.assert_allclose(vectors[2400], client.encode(texts[2400]), atol=1e-5)


def test_stream_of_thousands_is_taken_no_faster_than_answered(client: Client) -> None:
    taken = furthest = 0

    def items() -> Iterator[str]:
        nonlocal taken
        for i in range(4000):
            taken = i + 1
            yield f"thing {i}"

    for position, item in enumerate(client.encode_stream(items())):
        assert item.index == position
        assert item.version
        furthest = max(furthest, taken - position)
    assert position == 3999
    assert furthest <= 32 * (client.server_info().limits.max_stream_in_flight + 3)


def test_typed_errors(client: Client) -> None:
    with pytest.raises(NotFound, match="VERSION"):
        client.encode("a", version="0" * 16)
    with pytest.raises(NotFound):
        client.encode("a", model="none")
    with pytest.raises(SpaceMismatch) as caught:
        client.encode("a", expected_space_id="0" * 32)
    assert caught.value.reason == "SPACE_MISMATCH"
    with pytest.raises(InvalidArgument):
        client.encode([])
    with pytest.raises(NotFound):
        client.get_job("none")
    with pytest.raises(NotFound):
        client.search("none", "a")


def test_deadline(client: Client) -> None:
    pictures = [photograph(i, 1500, 1500) for i in range(4)]
    with pytest.raises(DeadlineExceeded):
        client.encode(pictures, timeout=0.05)
    assert client.is_ready()


def test_rank(client: Client) -> None:
    ranking = client.rank(photograph(1), ["a", "b", "c"])
    cosines = [s.cosine for s in ranking.scores]
    assert cosines == sorted(cosines, reverse=True)
    assert sum(s.probability for s in ranking.scores) == pytest.approx(1, abs=1e-5)


async def test_what_to_begin_with(client: Client, server: ServerProcess) -> None:
    known = client.backbones()
    assert known[0].source == "builtin:mini"
    live = client.get_version(client.get_model().live_version)
    assert (known[0].dim, known[0].image_size) == (live.dim, live.image_size)
    large = {backbone.source: backbone for backbone in known}["ViT-B-32::openai"]
    assert str(large).startswith("ViT-B-32::openai (151 M, 512 dims, 224 px, en, MIT): ")
    architectures = {known.name: known for known in client.architectures()}
    assert "openai" in architectures["ViT-B-32"].pretrained
    async with AsyncClient(server.address) as twin:
        assert await twin.backbones() == known
        assert len(await twin.architectures()) == len(architectures)


async def test_asyncio_twin(server: ServerProcess) -> None:
    async def items() -> AsyncIterator[str]:
        for i in range(500):
            yield f"thing {i}"

    async with AsyncClient(server.address) as client:
        await client.wait_ready(timeout=10)
        vectors = await client.encode(["thing 499", photograph(1)])
        stream = [item async for item in client.encode_stream(items())]
        with pytest.raises(SpaceMismatch):
            await client.encode("a", expected_space_id="0" * 32)
    assert [item.index for item in stream] == list(range(500))
    np.testing.assert_allclose(stream[-1].vector, vectors[0], atol=1e-5)
