"""Trimming changes no embedding, and is off where it would."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_models import TEXT, model_cfg, random_model

from hotclip_server.encoding.architecture import OpenClipConfig, build_model
from hotclip_server.encoding.text_tower import TextTower, Trim

CONTEXT = TEXT["context_length"]
END = 49407


def padded(*lengths: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    rng = np.random.default_rng(0)
    rows = np.zeros((len(lengths), CONTEXT), np.int64)
    for row, length in zip(rows, lengths, strict=True):
        row[: length - 1] = rng.integers(2, 500, length - 1)
        row[length - 1] = END
    return rows


@pytest.mark.parametrize("kind", ["clip", "quickgelu", "custom-text", "eos"])
def test_causal_towers_are_trimmed_exactly(kind: str, tmp_path: Path) -> None:
    config = OpenClipConfig(model=model_cfg(kind), preprocess={})
    model = random_model(config, tmp_path, seed=1)
    tower = TextTower(model, CONTEXT)
    assert tower.trim is Trim.CAUSAL
    rows = padded(3, 9, 2)
    short = [tower.shorten(row) for row in rows]
    assert [len(ids) for ids in short] == [3, 9, 2]
    batch = tower.pad(short)
    assert batch.shape == (3, 9)
    with torch.inference_mode():
        trimmed = tower.run(torch.from_numpy(batch))
        full = model.encode_text(torch.from_numpy(rows))
    torch.testing.assert_close(trimmed, full, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [1, CONTEXT])
def test_shortest_and_longest(length: int, tmp_path: Path) -> None:
    model = random_model(OpenClipConfig(model=model_cfg(), preprocess={}), tmp_path, seed=1)
    tower = TextTower(model, CONTEXT)
    rows = padded(length)
    with torch.inference_mode():
        trimmed = tower.run(torch.from_numpy(tower.pad([tower.shorten(rows[0])])))
        full = model.encode_text(torch.from_numpy(rows))
    torch.testing.assert_close(trimmed, full, rtol=1e-4, atol=1e-6)


def test_a_text_without_the_pooled_token(tmp_path: Path) -> None:
    model = random_model(OpenClipConfig(model=model_cfg("eos"), preprocess={}), tmp_path, seed=1)
    tower = TextTower(model, CONTEXT)
    rows = np.arange(2, 2 + CONTEXT)[None]
    assert len(tower.shorten(rows[0])) == 1
    with torch.inference_mode():
        trimmed = tower.run(torch.from_numpy(tower.pad([tower.shorten(rows[0])])))
        full = model.encode_text(torch.from_numpy(rows))
    torch.testing.assert_close(trimmed, full, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"no_causal_mask": True},
        {"pool_type": "last"},
        {"no_causal_mask": True, "pool_type": "first"},
        {"embed_cls": True},
    ],
)
def test_other_towers_get_the_whole_context(change: dict[str, object], tmp_path: Path) -> None:
    settings = model_cfg("custom-text")
    settings["text_cfg"] |= change
    model = build_model(OpenClipConfig(model=settings, preprocess={}), tmp_path, initialise=True)
    tower = TextTower(model, CONTEXT)
    assert tower.trim is Trim.NONE
    assert len(tower.shorten(padded(3)[0])) == CONTEXT


def test_another_context_than_the_towers_is_not_trimmed(tmp_path: Path) -> None:
    model = random_model(OpenClipConfig(model=model_cfg(), preprocess={}), tmp_path, seed=1)
    assert TextTower(model, CONTEXT - 1).trim is Trim.NONE
