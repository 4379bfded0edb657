"""A CUDA device gives what the CPU gives, serves, learns and swaps."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.shapes import captioned_shapes
from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.protocol import Tower

pytestmark = pytest.mark.gpu

# Largest distance to the reference over the median distance between references.
DISTANCE_RATIO = {"fp32": 0.01, "bf16": 0.1, "fp16": 0.1}


@pytest.mark.parametrize("precision", DISTANCE_RATIO)
@pytest.mark.parametrize("engine", ["eager", "torch", "cuda"])
@pytest.mark.parametrize("source", ["builtin:mini", "ViT-B-32::"])
def test_vectors_equal_open_clip(
    source: str, engine: str, precision: str, cuda: str, tmp_path: Path
) -> None:
    from benchmarks.parity import compare
    from benchmarks.reference import Reference
    from hotclip_server.encoding.cuda.engine import CudaEngine, CudaEngines
    from hotclip_server.encoding.cuda.gate import CaptureGate
    from hotclip_server.encoding.cuda.torch_device import TorchDevice
    from hotclip_server.encoding.engines.factory import EngineFactory
    from hotclip_server.encoding.engines.protocol import EngineChoice
    from hotclip_server.models.store import VersionStore

    texts, images = map(list, zip(*captioned_shapes(64), strict=True))
    store = VersionStore(tmp_path, allow_random_weights=True)
    version = store.import_source(source).id
    encoder = store.load(version, device=cuda)
    engines = CudaEngines(TorchDevice(0), CaptureGate(), (1, 16, 64))
    factory = EngineFactory({"cuda": engines.build})
    for tower in Tower:
        of_tower = encoder.source(tower)
        assert of_tower is not None
        built = factory.build(EngineChoice(engine, precision), of_tower)
        if isinstance(built, CudaEngine):
            assert list(built.warm_up())
        encoder.install(tower, built, None)
    reference = Reference(store.folder(version))
    pairs = [
        (
            encoder.encode(Tower.TEXT, [encoder.prepare_text(text) for text in texts]),
            reference.encode_texts(texts),
        ),
        (
            encoder.encode(Tower.VISION, [encoder.prepare_image(image) for image in images]),
            reference.encode_images(images),
        ),
    ]
    encoder.close()
    engines.close()
    for got, wanted in pairs:
        assert got.dtype == np.float32
        parity = compare(unit_rows(got), wanted)
        assert parity.distance_ratio <= DISTANCE_RATIO[precision], parity
        assert parity.nearest_is_own, parity


def test_serves_learns_swaps_and_rolls_back(cuda: str, tmp_path: Path) -> None:
    from benchmarks.end_to_end import check_model

    figures = check_model("builtin:mini", cuda, tmp_path, steps=4)
    assert figures["passed"], figures
