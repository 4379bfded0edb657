"""Fine-tunes by every method and loss over gRPC: a real server, the built-in model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.drawings import COLOURS, SHAPES, draw, drawn_pairs
from support.server import ServerProcess, start_server

from hotclip import Client, Pair
from hotclip.errors import InvalidArgument
from hotclip_server.training.config import AUTO_LORA_BELOW
from hotclip_server.training.selection import is_projection, is_text

FEW: dict[str, Any] = {
    "max_steps": 3,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "val_split": 0.25,
    "activation": "never",
    "wise_ft": None,
}
ATTENTION = (
    "attn.in_proj_weight",
    *(f"visual.attnpool.{part}_proj.weight" for part in ("q", "k", "v")),
)
OTHERS = (
    *("attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
    "visual.attnpool.c_proj.weight",
)
FROZEN = (
    *("visual.conv", "visual.bn", "visual.layer1.", "transformer.resblocks.0."),
    *("token_embedding", "positional_embedding"),
)
PAIRS = [(text, image) for image, text in drawn_pairs()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("methods") / "data"
    with start_server(folder, "--device", "cpu") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def weights(server: ServerProcess, version: str) -> dict[str, torch.Tensor]:
    return load_file(server.data_dir / "versions" / version / "open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"method": "full", "layer_decay": 0.8}, lambda name: True),
        ({"method": "lora"}, lambda name: name.endswith(ATTENTION)),
        (
            {"method": "lora", "lora": {"dora": True, "targets": ["out", "mlp"]}},
            lambda name: name.endswith(OTHERS),
        ),
        ({}, lambda name: name.endswith(ATTENTION)),  # so few pairs: LoRA
        ({"freeze": True}, is_projection),
        ({"method": "lit"}, is_text),
        (
            {"freeze": 1, "method": "full"},
            lambda name: not name.startswith(FROZEN),
        ),
    ],
)
def test_a_method_changes_what_it_says(
    server: ServerProcess,
    client: Client,
    changes: dict[str, Any],
    allowed: Callable[[str], bool],
) -> None:
    base = client.get_model().live_version
    run = client.finetune(PAIRS, **FEW, **changes)
    tuned = run.wait(120).result_version
    before, after = weights(server, base), weights(server, tuned)
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert "method lora, loss info_nce" in "\n".join(line.message for line in run.logs()) or changes
    assert different - {"logit_scale"}
    assert all(map(allowed, different - {"logit_scale"}))
    image = draw("red", "cross")
    if changes.get("method") == "lit":
        new, old = client.get_version(tuned), client.get_version(base)
        assert new.vision_encoder_id == old.vision_encoder_id
        assert new.text_encoder_id != old.text_encoder_id
        vectors = [np.asarray(client.encode(image, version=version)) for version in (base, tuned)]
        assert (vectors[0] == vectors[1]).all()


def labelled() -> list[Pair]:
    return [
        Pair("", draw(c, s, size=40 + 8 * n), label=s)
        for n in (0, 1)
        for c in COLOURS
        for s in SHAPES
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": ["a photo of a {label}", "{label}"]},
        {
            "loss": "TripletMarginLoss",
            "loss_options": {"margin": 0.2},
            "miner": "TripletMarginMiner",
            "miner_options": {"type_of_triplets": "semihard"},
        },
    ],
)
def test_labels_are_learnt(client: Client, changes: dict[str, Any]) -> None:
    data = labelled()
    run = client.finetune(
        data,
        data,
        method="full",
        epochs=12,
        batch_size=32,
        learning_rate=5e-4,
        activation="never",
        **changes,
    )
    tuned = run.wait(180).result_version
    measured = {m.stage: m.metrics for m in run.measurements()}
    assert measured["AFTER"]["monitor"] > measured["BEFORE"]["monitor"]
    # The same by Evaluate, whose prompts are queries of their own.
    found = client.evaluate(data, version=tuned, prompts=changes.get("prompts", ()))
    found.wait(60)
    [after] = [m.metrics for m in found.measurements() if m.stage == "AFTER"]
    assert after["monitor"] == pytest.approx(measured["AFTER"]["monitor"], abs=1e-6)
    assert after["clip-text-to-clip-vision_queries"] == 4 * len(changes.get("prompts", [0]))


def test_scores_negatives_and_the_base_are_minded(client: Client) -> None:
    data = [
        Pair(
            f"a {c} {s}",
            draw(c, s),
            score=0.5,
            negative_texts=[f"a {c} hexagon", "nothing"],
            negative_images=[draw(c, s, size=64)],
        )
        for c in COLOURS
        for s in SHAPES
    ]
    for changes in (
        {"negatives": 2, "positives": "mask"},
        {"negatives": 0, "preserve": 5.0, "optimizer": "SGD", "scheduler": "polynomial"},
    ):
        run = client.finetune(data, **FEW, **changes)
        assert run.wait(120).result_version


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"loss": "SigLipLoss"}, ["loss"]),
        ({"freeze": 99}, ["freeze_layers"]),
        ({"device": "cuda:99"}, ["device"]),
        ({"device": "tpu"}, ["device"]),
        ({"device": "tpu", "loss": "siglip"}, ["device", "loss"]),
        ({"layer_decay": 0.9}, ["layer_decay"]),  # so few pairs: LoRA
        ({"prompts": ["a {label}"]}, ["prompts"]),
        ({"prompts": ["a {label}"], "replay_data": PAIRS}, ["prompts"]),
        ({"prompts": ["a {label}"], "layer_decay": 0.9}, ["layer_decay", "prompts"]),
    ],
)
def test_what_cannot_be_done_or_does_nothing_is_refused_at_once(
    client: Client, changes: dict[str, Any], fields: list[str]
) -> None:
    for validate_only in (False, True):
        with pytest.raises(InvalidArgument) as refused:
            client.finetune(PAIRS, **FEW, **changes, validate_only=validate_only)
        assert [violation.field for violation in refused.value.fields] == fields


def test_what_is_held_out_does_not_change_the_method(client: Client) -> None:
    """The request was checked for the method that the whole dataset calls for."""
    pairs = [(f"{text}, {number}", image) for text, image in PAIRS for number in range(33)]
    assert len(pairs) * (1 - FEW["val_split"]) < AUTO_LORA_BELOW <= len(pairs)
    run = client.finetune(pairs, **{**FEW, "max_steps": 1})
    told = [line.message for line in run.stream_logs()]
    assert any(line.startswith("method full,") for line in told), told
    with pytest.raises(InvalidArgument) as refused:
        client.finetune(pairs, **FEW, lora={"rank": 4})
    assert [violation.field for violation in refused.value.fields] == ["lora"]
    client.finetune(pairs, **FEW, layer_decay=0.9, validate_only=True)


@pytest.mark.parametrize("extra", ["replay_data", "index_data"])
def test_prompts_are_of_use_where_any_image_waits_for_a_text(client: Client, extra: str) -> None:
    more: dict[str, Any] = {extra: labelled()}
    client.finetune(PAIRS, **FEW, prompts=["a {label}"], **more, validate_only=True)


def test_an_evaluation_refuses_prompts_that_name_nothing(client: Client) -> None:
    with pytest.raises(InvalidArgument) as refused:
        client.evaluate(PAIRS, prompts=["a {label}"])
    assert [violation.field for violation in refused.value.fields] == ["prompts"]
    run = client.evaluate(PAIRS, index_data=labelled(), prompts=["a {label}"])
    run.wait(60)
