"""Embeddings equal open_clip's own, through import, storage and loading.

Where open_clip would ask a hub, a hub on loopback answers with configs and tokenizers made
here; the version is then loaded in this process, which has none.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from support.hub import LoopbackHub
from support.hub_files import SENTENCES, siglip_tokenizer, xlm_roberta
from support.parity import INPUTS, assert_parity
from support.pictures import encoded, photograph

from hotclip_server import encoding
from hotclip_server.encoding.engines.linear import multiplies_in
from hotclip_server.encoding.engines.parts import PartThreads
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.torch_engine import TorchEngine
from hotclip_server.encoding.open_clip_encoder import OpenClipEncoder
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.models.store import VersionStore

MINI = Path(encoding.__path__[0], "builtin", "mini")
BATCHES = (1, 5, 2, 8)
"""Sizes of the batches that are compared, so that neighbours and sizes vary."""
TOLERANCE = {"fp32": 0.01, "bf16": 0.1}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is imported and what plain open_clip is asked for."""

    source: str
    name: str
    pretrained: str = "stored"
    publish: str = ""
    plain_only: frozenset[tuple[Tower, str]] = frozenset()
    """Towers and precisions that stay with plain open_clip."""


CASES = {
    "ViT-B-32": Case(source="ViT-B-32::", name="ViT-B-32"),
    "ViT-B-32-quickgelu": Case(source="ViT-B-32-quickgelu::", name="ViT-B-32-quickgelu"),
    "ViT-B-16-SigLIP": Case(
        source="ViT-B-16-SigLIP::webli",
        name="ViT-B-16-SigLIP",
        pretrained="webli",
        publish="timm/ViT-B-16-SigLIP",
    ),
    "xlm-roberta-base-ViT-B-32": Case(
        source="xlm-roberta-base-ViT-B-32::laion5b_s13b_b90k",
        name="xlm-roberta-base-ViT-B-32",
        pretrained="laion5b_s13b_b90k",
        publish="laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k",
    ),
    "convnext_base": Case(source="convnext_base::", name="convnext_base"),
    # With random weights all images get nearly the same vector: bf16 does not pass, rightly.
    "RN50": Case(source="RN50::", name="RN50", plain_only=frozenset({(Tower.VISION, "bf16")})),
    "builtin:mini": Case(source="builtin:mini", name=f"local-dir:{MINI}", pretrained=""),
}


SMALLER: dict[str, dict[str, dict[str, object]]] = {
    "ViT-B-32-quickgelu": {"vision_cfg": {"layers": 3}, "text_cfg": {"layers": 3}},
    "ViT-B-16-SigLIP": {
        "vision_cfg": {"timm_model_name": "vit_base_patch32_siglip_256", "image_size": 256},
        "text_cfg": {"layers": 3},
    },
    "xlm-roberta-base-ViT-B-32": {"vision_cfg": {"layers": 3}, "text_cfg": {}},
    "convnext_base": {"vision_cfg": {"image_size": 96}, "text_cfg": {"layers": 3}},
    "RN50": {"vision_cfg": {"image_size": 96}, "text_cfg": {"layers": 3}},
}
"""Fewer layers or pixels where the code path stays the same: minutes of two cores otherwise."""


def captions() -> list[str]:
    """64 different texts, short to longer than any context, in several scripts."""
    made = [f"{i}: {SENTENCES[i % 7]}" + " and more" * (i % 5) for i in range(INPUTS - 4)]
    return [*made, "", "cat", "👩‍👩‍👧 🏳️‍🌈 &amp; it's", " ".join(SENTENCES * 3)]


@functools.cache
def files() -> list[bytes]:
    """64 different photographs in several sizes and formats."""
    sizes = [(320, 240), (500, 375), (200, 300), (224, 224), (97, 61)]
    kinds = ["JPEG", "PNG", "WEBP"]
    return [encoded(photograph(i, *sizes[i % 5]), kinds[i % 3]) for i in range(INPUTS)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "images").mkdir()
    for number, data in enumerate(files()):
        (folder / "images" / f"{number:02}").write_bytes(data)
    (folder / "configs").mkdir()
    for name, changes in SMALLER.items():
        config = open_clip.get_model_config(name)
        for part, values in changes.items():
            config[part] |= values
        (folder / "configs" / f"{name}.json").write_text(json.dumps(config), "utf-8")
    (folder / "texts.json").write_text(json.dumps(captions()), "utf-8")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    root = tmp_path_factory.mktemp("hub")
    siglip_tokenizer(root / "timm" / "ViT-B-16-SigLIP")
    xlm_roberta(root / "xlm-roberta-base")
    with LoopbackHub(root) as running:
        yield running


def compare(
    run: Callable[[list[Prepared]], NDArray[np.float32]],
    prepare: Callable[[int], Prepared],
    reference: NDArray[np.float32],
    tolerance: float = TOLERANCE["fp32"],
) -> None:
    """In batches of several sizes over inputs from all parts of the 64."""
    numbers = [(7 * i) % INPUTS for i in range(sum(BATCHES) - 1)] + [INPUTS - 1]
    outputs, at = [], 0
    for size in BATCHES:
        batch = [prepare(number) for number in numbers[at : at + size]]
        outputs.append(run(batch))
        at += size
    assert_parity(np.concatenate(outputs), reference, numbers, tolerance=tolerance)


@functools.cache
def part_threads() -> PartThreads:
    """Two, as on two cores: batches that are large enough are computed by both."""
    threads = PartThreads(2)
    threads.start()
    return threads


def compare_engines(
    encoder: OpenClipEncoder,
    tower: Tower,
    prepare: Callable[[int], Prepared],
    reference: NDArray[np.float32],
    case: Case,
) -> None:
    """Plain open_clip, then the torch engine in each precision."""
    compare(lambda batch: encoder.encode(tower, batch), prepare, reference)
    source = encoder.source(tower)
    assert source is not None
    for precision, tolerance in TOLERANCE.items():
        if (tower, precision) in case.plain_only:
            continue
        if not multiplies_in(DTYPES[precision]):
            with pytest.raises(EngineUnfit, match=precision):
                TorchEngine(source, precision)
            continue
        engine = TorchEngine(source, precision, parts=part_threads())
        compare(
            lambda batch, engine=engine: engine.run([item.array for item in batch]),  # type: ignore[misc]
            prepare,
            reference,
            tolerance,
        )
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equal_to_open_clip(case: Case, hub: LoopbackHub, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "reference.npz"
    command = [sys.executable, str(Path(__file__).with_name("reference.py"))]
    command += [case.source, case.name, case.pretrained, str(tmp_path / "versions")]
    command += [
        str(inputs / "configs"),
        str(inputs / "images"),
        str(inputs / "texts.json"),
        str(out),
    ]
    if case.publish:
        command.append(str(hub.root / case.publish))
    environment = {**os.environ, **hub.environment(tmp_path / "cache")}
    environment["OMP_WAIT_POLICY"] = "passive"  # spinning threads starve what runs beside them
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reference = np.load(out, allow_pickle=False)
    encoder = VersionStore(tmp_path / "versions").load(str(reference["version"]))
    images, texts = files(), captions()
    compare_engines(
        encoder, Tower.TEXT, lambda i: encoder.prepare_text(texts[i]), reference["texts"], case
    )
    compare_engines(
        encoder, Tower.VISION, lambda i: encoder.prepare_image(images[i]), reference["images"], case
    )
    encoder.close()
