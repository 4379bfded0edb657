"""Versions made of one are models of their own that load as it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from support.small_models import write_model

from benchmarks.variants import WEIGHTS, write_variant
from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.protocol import Tower
from hotclip_server.models.store import VersionStore


def test_other_weights_and_nothing_else(tmp_path: Path) -> None:
    base = write_model(tmp_path / "models" / "base", "resnet")
    write_variant(base, tmp_path / "models" / "b", seed=1)
    write_variant(base, tmp_path / "models" / "c", seed=2)
    state, other = load_file(base / WEIGHTS), load_file(tmp_path / "models" / "b" / WEIGHTS)
    for name, value in state.items():
        assert np.array_equal(value, other[name]) == (value.ndim < 2), name
    store = VersionStore(tmp_path / "versions", models_dir=tmp_path / "models")
    vectors = []
    for name in ("base", "b", "c"):
        encoder = store.load(store.import_source(f"local:{name}").id)
        rows = encoder.encode(Tower.TEXT, [encoder.prepare_text(text) for text in ("one", "two")])
        vectors.append(unit_rows(rows))
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(vectors[one] - vectors[two], axis=1).min() > 0.1
