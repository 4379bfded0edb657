"""The reference engine: what goes in, what comes out."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from support.parity import INPUTS, assert_parity
from support.pictures import encoded, photograph
from support.small_models import write_model

from hotclip_server.encoding import open_clip_encoder
from hotclip_server.encoding.engines.eager import EagerEngine
from hotclip_server.encoding.engines.protocol import EngineChoice
from hotclip_server.encoding.engines.torch_engine import TorchEngine
from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.open_clip_encoder import OpenClipEncoder
from hotclip_server.encoding.protocol import Encoder, Tower
from hotclip_server.errors import InvalidArgument
from hotclip_server.models.store import VersionStore

KINDS = ["clip", "quickgelu", "custom-text", "siglip", "resnet", "eos", "mini"]


def encoder_of(folder: Path, kind: str) -> OpenClipEncoder:
    write_model(folder / "models" / kind, kind)
    store = VersionStore(folder / "versions", models_dir=folder / "models")
    return store.load(store.import_source(f"local:{kind}").id)


def assert_same(ours: NDArray[np.float32], theirs: NDArray[np.float32], numbers: list[int]) -> None:
    """Features, not normalised: the same direction and the same length."""
    assert_parity(ours, theirs, numbers)
    lengths = np.linalg.norm(theirs, axis=1)
    assert np.abs(lengths - 1).max() > 0.01
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), lengths, rtol=5e-3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> OpenClipEncoder:
    return encoder_of(tmp_path_factory.mktemp("model"), "clip")


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_open_clip(kind: str, tmp_path: Path) -> None:
    encoder: Encoder = encoder_of(tmp_path, kind)
    name = f"local-dir:{tmp_path / 'models' / kind}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    texts = [f"number {i} of the photos" + " and so on" * (i % 4) for i in range(INPUTS)]
    images = [photograph(i, 60 + i, 50) for i in range(INPUTS)]
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(name)(texts)
        text_features = model.eval().encode_text(tokens).numpy()
        pixels = torch.stack([transform(image) for image in images])
        image_features = model.encode_image(pixels).numpy()
    numbers = list(range(INPUTS))
    prepared = [encoder.prepare_text(text) for text in texts]
    assert_same(encoder.encode(Tower.TEXT, prepared), text_features, numbers)
    prepared = [encoder.prepare_image(encoded(image)) for image in images]
    assert_same(encoder.encode(Tower.VISION, prepared), image_features, numbers)
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_close(precision: str, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "clip")
    for tower, items in (
        (Tower.TEXT, [encoder.prepare_text(f"number {i}") for i in range(INPUTS)]),
        (Tower.VISION, [encoder.prepare_image(encoded(photograph(i))) for i in range(INPUTS)]),
    ):
        source = encoder.source(tower)
        assert source is not None
        expected = unit_rows(encoder.encode(tower, items))
        encoder.install(tower, EagerEngine(source, precision), None)
        assert encoder.engine(tower) == EngineChoice("eager", precision)
        features = encoder.encode(tower, items)
        assert features.dtype == np.float32
        np.testing.assert_allclose(unit_rows(features), expected, atol=0.02)


def test_weights_are_freed_once_no_tower_needs_them(tmp_path: Path) -> None:
    own = encoder_of(tmp_path, "clip")
    item = own.prepare_text("a photo")
    expected = own.encode(Tower.TEXT, [item])
    own.release_model()
    assert own.source(Tower.TEXT) is not None  # plain open_clip still runs
    for tower in Tower:
        source = own.source(tower)
        assert source is not None
        own.install(tower, TorchEngine(source, "fp32"), None)
    own.release_model()
    assert own.source(Tower.TEXT) is None
    assert not list(own.model.parameters())
    again = own.prepare_text("a photo")
    np.testing.assert_allclose(own.encode(Tower.TEXT, [again]), expected, rtol=1e-3, atol=1e-5)


def test_the_heap_is_trimmed_of_what_was_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(tmp_path, "clip")
    for tower in Tower:
        source = encoder.source(tower)
        assert source is not None
        encoder.install(tower, TorchEngine(source, "fp32"), None)
    encoder.release_model()
    engines = [weakref.ref(engine) for engine in encoder._engines.values()]
    del source
    held: list[bool] = []
    monkeypatch.setattr(open_clip_encoder, "TRIMMED_BYTES", 1)
    monkeypatch.setattr(
        open_clip_encoder, "trim_heap", lambda: held.extend(e() is not None for e in engines)
    )
    encoder.close()
    assert held == [False, False]


def test_prepared_text_is_short(encoder: OpenClipEncoder) -> None:
    item = encoder.prepare_text("a photo")
    assert item.array.dtype == np.int64
    assert (len(item.array), item.length) == (4, 4)
    assert len(encoder.prepare_text("word " * 100).array) == 16


def test_prepared_images_and_tensors_agree(encoder: OpenClipEncoder) -> None:
    item = encoder.prepare_image(encoded(photograph(1)))
    assert (item.array.shape, item.array.dtype, item.length) == ((32, 32, 3), np.uint8, 1)
    again = encoder.prepare_tensor(item.array.tobytes(), 32, 32)
    assert np.array_equal(
        encoder.encode(Tower.VISION, [again]), encoder.encode(Tower.VISION, [item])
    )


@pytest.mark.parametrize("tower", list(Tower))
def test_an_empty_batch(encoder: OpenClipEncoder, tower: Tower) -> None:
    assert encoder.encode(tower, []).shape == (0, 24)


def test_a_bad_image_is_refused(encoder: OpenClipEncoder) -> None:
    with pytest.raises(InvalidArgument):
        encoder.prepare_image(b"no image")


def test_the_model_does_not_learn_by_serving(encoder: OpenClipEncoder) -> None:
    assert not encoder.model.training
    assert not any(value.requires_grad for value in encoder.model.parameters())
