"""ONNX Runtime gives what plain open_clip gives, for every kind of tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg
from support.parity import INPUTS, assert_parity
from support.pictures import photograph
from support.small_models import model_cfg, random_model, write_text_config

from hotclip_server.encoding.architecture import OpenClipConfig, build_model
from hotclip_server.encoding.engines.eager import EagerEngine
from hotclip_server.encoding.engines.onnx_engine import CPU, CUDA, OnnxEngine, providers
from hotclip_server.encoding.engines.onnx_engines import OnnxEngines
from hotclip_server.encoding.engines.onnx_export import export_graph
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.protocol import Tower
from hotclip_server.encoding.text_tower import TextTower
from hotclip_server.models.probes import parity

ON_CPU = providers(torch.device("cpu"))


def config_of(kind: str) -> OpenClipConfig:
    """One of `model_cfg`'s kinds."""
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}
    return OpenClipConfig(model=model_cfg(kind), preprocess=preprocess)


def source_of(kind: str, tower: Tower, folder: Path) -> TowerSource:
    """A model of random weights that was never stored."""
    config = config_of(kind)
    model = random_model(config, folder, seed=0)
    if kind == "resnet":
        spread(model)
    visual: Any = model.visual
    return TowerSource(
        model=model,
        tower=tower,
        text=TextTower(model, config.context_length),
        preprocess=PreprocessCfg(**visual.preprocess_cfg),
        device=torch.device("cpu"),
        context_length=config.context_length,
    )


def spread(model: torch.nn.Module) -> None:
    """A random ResNet gives all images nearly the same vector; statistics as learnt ones have."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.05, 0.2, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.8, 1.2, generator=generator)


def inputs(kind: str, source: TowerSource) -> list[NDArray[Any]]:
    if source.tower is Tower.VISION:
        visual: Any = source.model.visual
        size = visual.image_size
        side = size if isinstance(size, int) else size[0]
        return [np.asarray(photograph(number, side, side)) for number in range(INPUTS)]
    rng = np.random.default_rng(0)
    texts = []
    end = 599 if kind in ("siglip", "xlm-roberta") else 49407
    for number in range(INPUTS):
        ids = np.full(source.context_length, source.text.masked_id or 0, np.int64)
        length = 3 + number % (source.context_length - 2)
        ids[:length] = rng.integers(3, 590, length)
        ids[length - 1] = end
        texts.append(source.text.shorten(ids))
    return texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the config of the text tower lies."""
    return write_text_config(tmp_path_factory.mktemp("towers"))


@cache
def graph_of(kind: str, tower: Tower, folder: Path) -> bytes:
    """Of a model whose weights were never set."""
    config = config_of(kind)
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, folder)
        graph: bytes = export_graph(model, tower, config.context_length).SerializeToString()
    return graph


def in_batches(engine: OnnxEngine, items: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Of 1, 2, 5, 16 items, and what is left."""
    rows, at = [], 0
    for size in (1, 2, 5, 16, INPUTS):
        if at < len(items):
            rows.append(engine.run(items[at : at + size]))
        at += size
    return np.concatenate(rows)


CASES = [
    ("clip", Tower.TEXT),
    ("clip", Tower.VISION),
    ("quickgelu", Tower.TEXT),
    ("quickgelu", Tower.VISION),
    ("custom-text", Tower.TEXT),
    ("custom-text", Tower.VISION),
    ("eos", Tower.TEXT),
    ("siglip", Tower.TEXT),
    ("timm-vit", Tower.VISION),
    ("resnet", Tower.VISION),
    ("convnext", Tower.VISION),
    ("xlm-roberta", Tower.TEXT),
]


@pytest.mark.parametrize(("kind", "tower"), CASES)
def test_equal_to_open_clip(kind: str, tower: Tower, folder: Path) -> None:
    source = source_of(kind, tower, folder)
    graph = graph_of(kind, tower, folder)
    assert len(graph) < 1_000_000  # no weights
    items = inputs(kind, source)
    reference = EagerEngine(source).run(items)
    engine = OnnxEngine(graph, source, "fp32", ON_CPU, threads=1)
    assert (engine.name, engine.precision) == ("onnx", "fp32")
    rows = in_batches(engine, items)
    assert_parity(rows, reference, list(range(INPUTS)))
    np.testing.assert_allclose(rows, reference, rtol=1e-3, atol=1e-4)
    if tower is Tower.TEXT:
        assert_int8(graph, source, items, reference)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.run(items[:1])


def assert_int8(
    graph: bytes, source: TowerSource, items: list[NDArray[Any]], reference: NDArray[np.float32]
) -> None:
    """Near, and the same whatever else is in the batch."""
    engine = OnnxEngine(graph, source, "int8", ON_CPU, threads=1)
    rows = in_batches(engine, items)
    assert 1e-6 < np.linalg.norm(unit_rows(rows) - unit_rows(reference), axis=1).max() < 0.3
    assert parity(reference, rows).min_cosine > 0.99
    alone = np.concatenate([engine.run([item]) for item in items[:8]])
    loud = [items[0], items[20], items[40]]
    np.testing.assert_allclose(engine.run(loud)[0], alone[0], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(rows[:8], alone, rtol=1e-3, atol=2e-4)


def test_a_graph_of_another_model_is_refused(folder: Path) -> None:
    graph = graph_of("clip", Tower.TEXT, folder)
    source = source_of("xlm-roberta", Tower.TEXT, folder)
    with pytest.raises(EngineUnfit, match="another model"):
        OnnxEngine(graph, source, "fp32", ON_CPU)


def test_what_can_not_be_built_is_said_before_anything_is_exported(folder: Path) -> None:
    source = source_of("clip", Tower.TEXT, folder)
    engines = OnnxEngines(folder / "graphs")
    with pytest.raises(EngineUnfit, match="not in bf16"):
        engines.build(source, "bf16")
    with pytest.raises(EngineUnfit, match="only a stored version"):
        engines.build(source, "fp32")
    with pytest.raises(EngineUnfit, match="int8 on the CPU only"):
        engines.build(replace(source, device=torch.device("cuda:0")), "int8")
    assert not (folder / "graphs").exists()


def test_only_what_is_there_is_asked_for() -> None:
    assert providers(torch.device("cpu"), [CUDA, CPU]) == [(CPU, {})]
    with pytest.raises(EngineUnfit, match="does not run on cuda"):
        providers(torch.device("cuda:0"), [CPU])
    (first, options), last = providers(torch.device("cuda:1"), [CUDA, CPU])
    assert (first, options["device_id"], options["use_tf32"]) == (CUDA, "1", "0")
    assert last == (CPU, {})
    with pytest.raises(EngineUnfit, match="does not run on mps"):
        providers(torch.device("mps"), [CPU])
