"""Every trick of the torch engine gives what plain open_clip gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.parity import INPUTS, assert_parity
from support.pictures import photograph
from support.precision import needs_bf16
from support.small_models import write_model
from support.towers import OTHERS, inputs_of, tower_source

from hotclip_server.encoding.engines import torch_engine
from hotclip_server.encoding.engines.eager import EagerEngine
from hotclip_server.encoding.engines.parts import PartThreads
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.torch_engine import TorchEngine
from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.open_clip_encoder import OpenClipEncoder
from hotclip_server.encoding.protocol import Tower
from hotclip_server.models.store import VersionStore

KINDS = ["clip", "quickgelu", "custom-text", "siglip", "resnet", "eos", "mini"]
TOLERANCE = {"fp32": 0.01, "bf16": 0.1}


def encoder_of(folder: Path, kind: str) -> OpenClipEncoder:
    write_model(folder / "models" / kind, kind)
    store = VersionStore(folder / "versions", models_dir=folder / "models")
    return store.load(store.import_source(f"local:{kind}").id)


def inputs(encoder: OpenClipEncoder, tower: Tower) -> list[NDArray[Any]]:
    if tower is Tower.TEXT:
        texts = [f"number {i} of the photos" + " and so on" * (i % 4) for i in range(INPUTS)]
        return [encoder.prepare_text(text).array for text in texts]
    side = encoder.spec.image_size
    return [np.asarray(photograph(i, side, side)) for i in range(INPUTS)]


def source_of(encoder: OpenClipEncoder, tower: Tower) -> Any:
    source = encoder.source(tower)
    assert source is not None
    return source


def in_batches(engine: TorchEngine, items: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Of every size from 1 to 10, and what is left."""
    rows, at = [], 0
    for size in [*range(1, 11), INPUTS - 55]:
        rows.append(engine.run(items[at : at + size]))
        at += size
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def parts() -> Iterator[PartThreads]:
    threads = PartThreads(3)
    threads.start()
    yield threads
    threads.stop()


# A random ResNet gives all images nearly the same vector: bf16 is tested on builtin:mini, which
# has learnt.
CASES = [
    pytest.param(kind, tower, precision, marks=[needs_bf16] if precision == "bf16" else [])
    for kind in KINDS
    for tower in Tower
    for precision in TOLERANCE
    if (kind, tower, precision) != ("resnet", Tower.VISION, "bf16")
]


@pytest.mark.parametrize(("kind", "tower", "precision"), CASES)
def test_equal_to_open_clip(
    kind: str,
    tower: Tower,
    precision: str,
    tmp_path: Path,
    parts: PartThreads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = encoder_of(tmp_path, kind)
    source = source_of(encoder, tower)
    items = inputs(encoder, tower)
    reference = EagerEngine(source).run(items)
    # Of models as small as these.
    monkeypatch.setattr(torch_engine, "LEAST_PRODUCTS", 1e4)
    monkeypatch.setattr(torch_engine, "LEAST_IMAGES", 1)
    # The whole batch at once, and in parts.
    for engine in TorchEngine(source, precision), TorchEngine(source, precision, parts=parts):
        rows = in_batches(engine, items)
        assert rows.dtype == np.float32
        assert_parity(rows, reference, list(range(INPUTS)), tolerance=TOLERANCE[precision])
        if precision == "fp32":
            np.testing.assert_allclose(rows, reference, rtol=1e-3, atol=1e-4)


OTHER_CASES = [
    pytest.param(kind, tower, precision, marks=[needs_bf16] if precision == "bf16" else [])
    for kind, tower in OTHERS
    for precision in TOLERANCE
    if (kind, precision) != ("convnext", "bf16")  # as for a ResNet
]


@pytest.mark.parametrize(("kind", "tower", "precision"), OTHER_CASES)
def test_towers_of_other_libraries(kind: str, tower: Tower, precision: str) -> None:
    source = tower_source(kind, tower)
    items = inputs_of(source, INPUTS)
    reference = EagerEngine(source).run(items)
    rows = in_batches(TorchEngine(source, precision), items)
    assert_parity(rows, reference, list(range(INPUTS)), tolerance=TOLERANCE[precision])


def test_a_tower_that_is_not_exactly_known_is_not_taken(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "clip")
    source = source_of(encoder, Tower.VISION)

    class Changed(type(source.model.visual)):  # type: ignore[misc]  # open_clip is not typed
        pass

    source.model.visual.__class__ = Changed
    with pytest.raises(EngineUnfit, match="not a plain VisionTransformer"):
        TorchEngine(source, "fp32")


def test_a_precision_that_the_processor_lacks_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "multiplies_in", lambda dtype: dtype == torch.float32)
    source = source_of(encoder_of(tmp_path, "clip"), Tower.TEXT)
    with pytest.raises(EngineUnfit, match="does not multiply in bf16"):
        TorchEngine(source, "bf16")
    TorchEngine(source, "fp32")


def test_a_closed_engine_holds_no_weights(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "clip")
    engine = TorchEngine(source_of(encoder, Tower.TEXT), "fp32")
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.run(inputs(encoder, Tower.TEXT)[:1])


def test_the_source_is_left_as_it_was(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "resnet")
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    for tower in Tower:
        TorchEngine(source_of(encoder, tower), "fp32").run(inputs(encoder, tower)[:2])
    for name, value in encoder.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_lengths_do_not_change_a_text(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, "clip")
    engine = TorchEngine(source_of(encoder, Tower.TEXT), "fp32")
    items = inputs(encoder, Tower.TEXT)[:8]
    together = unit_rows(engine.run(items))
    alone = unit_rows(np.concatenate([engine.run([item]) for item in items]))
    np.testing.assert_allclose(together, alone, atol=1e-5)
