"""What both clients ask for when they start a fine-tune."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from hotclip import AsyncClient, Client
from hotclip._finetuning import METRIC_LOSSES, MINERS
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import finetune_pb2 as pb
from hotclip_server.training import metric_names
from tests.unit.client.conftest import FakeEncode

DATA = {"eval_data": "e", "query_data": "q", "index_data": "i", "replay_data": "o"}
EVERYTHING: dict[str, Any] = {
    "model": "m",
    "base_version": "v",
    "val_split": 0.2,
    "monitor": "validation_loss",
    "epochs": 3,
    "max_steps": 9,
    "batch_size": 32,
    "chunk_size": 8,
    "method": "lora",
    "lora": {"rank": 4, "alpha": 8.0, "dora": True, "targets": ["q", "mlp"]},
    "freeze": 2,
    "lock_image": True,
    "loss": "TripletMarginLoss",
    "loss_options": {"margin": 0.2, "swap": True},
    "miner": "triplet_margin_miner",
    "miner_options": {"type_of_triplets": "semihard"},
    "items_per_class": 8,
    "positives": "mask",
    "negatives": 0,
    "mining": {"collection": "c", "count": 2, "pool": 4, "ceiling": 0.9, "every": 3},
    "prompts": "a {label}",
    "preserve": 0.5,
    "optimizer": "Adam",
    "optimizer_options": {"betas": (0.8, 0.9), "weight_decay": 0.1},
    "learning_rate": 1e-3,
    "warmup": 0.0,
    "scheduler": "cosine_with_restarts",
    "scheduler_options": {"cycles": 3},
    "clip_norm": 2.0,
    "ema": 0.0,
    "precision": "fp32",
    "augment": False,
    "seed": 7,
    "early_stopping": {"monitor": "epoch_loss", "patience": 3, "min_delta": 0.1, "mode": "min"},
    "keep_checkpoints": 4,
    "wise_ft": {"alpha": 0.5},
    "soup": 3,
    "export_onnx": True,
    "activation": "never",
    "isolation": "process",
    "device": "cpu",
    "trackers": ["mlflow"],
    "k": 5,
    "compat": "clip_benchmark",
    "name": "n",
    "description": "d",
    "request_id": "r",
    "validate_only": True,
}


async def test_both_clients_ask_for_the_same(fake: FakeEncode) -> None:
    with Client(fake.address) as client:
        client.finetune("data", **DATA, **EVERYTHING)
    async with AsyncClient(fake.address) as twin:
        await twin.finetune("data", **DATA, **EVERYTHING)
    first, second = fake.jobs.started
    assert first == second
    expected = pb.FineTuneRequest(
        model="m",
        base_version="v",
        train_dataset="data",
        eval_dataset="e",
        query_dataset="q",
        index_dataset="i",
        replay_dataset="o",
        val_split=0.2,
        monitor="validation_loss",
        epochs=3,
        max_steps=9,
        batch_size=32,
        chunk_size=8,
        method=pb.METHOD_LORA,
        lora=pb.Lora(rank=4, alpha=8, dora=True, targets=["q", "mlp"]),
        freeze_layers=2,
        lock_image=True,
        loss=pb.LOSS_METRIC,
        positives=pb.POSITIVES_MASK,
        negatives=0,
        mining=pb.Mining(collection="c", count=2, pool=4, ceiling=0.9, every=3),
        prompts=["a {label}"],
        preserve=0.5,
        optimizer=pb.OPTIMIZER_ADAM,
        beta1=0.8,
        beta2=0.9,
        weight_decay=0.1,
        learning_rate=1e-3,
        warmup=0.0,
        scheduler=pb.SCHEDULER_COSINE_WITH_RESTARTS,
        scheduler_cycles=3,
        clip_norm=2.0,
        ema=0.0,
        precision=pb.PRECISION_FP32,
        augment=False,
        seed=7,
        early_stopping=pb.EarlyStopping(
            monitor="epoch_loss", patience=3, min_delta=0.1, mode=pb.EarlyStopping.MODE_MIN
        ),
        keep_checkpoints=4,
        wise_ft=0.5,
        soup=3,
        export_onnx=True,
        activation=pb.ACTIVATION_NEVER,
        isolation=pb.ISOLATION_PROCESS,
        device="cpu",
        trackers=["mlflow"],
        k=5,
        compat=pb.METRIC_COMPAT_CLIP_BENCHMARK,
        name="n",
        description="d",
        request_id="r",
        validate_only=True,
    )
    expected.metric_loss.name = "TripletMarginLoss"
    expected.metric_loss.miner = "TripletMarginMiner"
    expected.metric_loss.items_per_class = 8
    expected.metric_loss.options.update({"margin": 0.2, "swap": True})
    expected.metric_loss.miner_options.update({"type_of_triplets": "semihard"})
    assert first == expected


def test_what_is_left_out_is_the_servers_to_decide(fake: FakeEncode) -> None:
    with Client(fake.address) as client:
        client.finetune("data", early_stopping=True, wise_ft=0.25, freeze=["text"], mining=True)
        client.finetune("data", mining="shop")
    request, second = fake.jobs.started
    assert request.HasField("mining")
    assert (request.mining, second.mining) == (pb.Mining(), pb.Mining(collection="shop"))
    assert request.loss == pb.LOSS_UNSPECIFIED
    assert not any(request.HasField(name) for name in ("learning_rate", "ema", "lora", "augment"))
    assert request.early_stopping == pb.EarlyStopping()
    assert request.HasField("early_stopping")
    assert (request.wise_ft, request.lock_text, request.lock_image) == (0.25, True, False)


def test_finetuners_freeze_leaves_the_projections(fake: FakeEncode) -> None:
    with Client(fake.address) as client:
        client.finetune("data", freeze=True)
    [request] = fake.jobs.started
    assert request.method == pb.METHOD_PROJECTION


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"loss": "TripletLoss"}, "loss"),
        ({"loss_options": {"margin": 1}}, "loss_options"),
        ({"miner": "AngularMiner"}, "miner"),
        ({"loss": "NCALoss", "miner": "OddMiner"}, "miner"),
        ({"loss": "NCALoss", "loss_options": {"softmax_scale": b"x"}}, "loss_options"),
        ({"method": "adapter"}, "method"),
        ({"lora": {"rnak": 1}}, "lora.rnak"),
        ({"freeze": "vision"}, "freeze"),
        ({"freeze": -1}, "freeze"),
        ({"freeze": True, "method": "full"}, "freeze"),
        ({"positives": "all"}, "positives"),
        ({"optimizer": "Lion"}, "optimizer"),
        ({"optimizer_options": {"lr": 1}}, "optimizer_options.lr"),
        ({"optimizer_options": {"betas": 0.9}}, "optimizer_options.betas"),
        (
            {"optimizer_options": {"weight_decay": 1}, "weight_decay": 0.1},
            "optimizer_options.weight_decay",
        ),
        ({"scheduler": "step"}, "scheduler"),
        ({"scheduler_options": {"steps": 1}}, "scheduler_options.steps"),
        ({"precision": "fp16"}, "precision"),
        ({"mining": {"depth": 1}}, "mining.depth"),
        ({"early_stopping": {"baseline": 1}}, "early_stopping.baseline"),
        ({"early_stopping": {"mode": "up"}}, "early_stopping.mode"),
        ({"wise_ft": {"weight": 0.5}}, "wise_ft.weight"),
        ({"wise_ft": {}}, "wise_ft"),
        ({"activation": "maybe"}, "activation"),
        ({"isolation": "thread"}, "isolation"),
        ({"method": None}, "method"),
        ({"epochs": -1}, "epochs"),
        ({"epochs": "three"}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"soup": 1 << 40}, "soup"),
        ({"learning_rate": "1e-5"}, "learning_rate"),
        ({"prompts": 7}, "prompts"),
        ({"name": "\ud800"}, "name"),
        ({"freeze": 1.5}, "freeze"),
        ({"freeze": 1 << 40}, "freeze"),
        ({"lora": 4}, "lora"),
        ({"lora": {"rank": -1}}, "lora.rank"),
        ({"optimizer_options": {"momentum": "much"}}, "optimizer_options.momentum"),
        ({"scheduler_options": {"cycles": -1}}, "scheduler_options.cycles"),
        ({"early_stopping": 3}, "early_stopping"),
        ({"early_stopping": {"patience": -1}}, "early_stopping.patience"),
        ({"wise_ft": {"alpha": "half"}}, "wise_ft.alpha"),
        ({"loss": "NCALoss", "items_per_class": -4}, "items_per_class"),
        ({"loss": "CLIPLoss", "items_per_class": 0}, "items_per_class"),
        ({"loss": "CLIPLoss", "items_per_class": 4}, "items_per_class"),
    ],
)
def test_a_name_that_is_not_known_is_refused(
    fake: FakeEncode, changes: dict[str, Any], field: str
) -> None:
    with Client(fake.address) as client, pytest.raises(InvalidArgument) as caught:
        client.finetune("data", **changes)
    assert [violation.field for violation in caught.value.fields] == [field]
    assert not fake.jobs.started


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"k": -1}, "k"), ({"alphas": ["half"]}, "alphas"), ({"name": 7}, "name")],
)
def test_a_value_of_an_evaluation_that_does_not_fit_is_named(
    fake: FakeEncode, changes: dict[str, Any], field: str
) -> None:
    with Client(fake.address) as client, pytest.raises(InvalidArgument) as caught:
        client.evaluate("data", **changes)
    assert [violation.field for violation in caught.value.fields] == [field]


def test_the_twins_take_the_same_and_describe_all_of_it() -> None:
    ours, theirs = inspect.signature(Client.finetune), inspect.signature(AsyncClient.finetune)
    assert list(ours.parameters.items())[1:] == list(theirs.parameters.items())[1:]
    text = Client.finetune.__doc__ or ""
    assert text == AsyncClient.finetune.__doc__
    assert [n for n in list(ours.parameters)[1:] if f"        {n}: " not in text] == []


def test_the_clients_names_are_the_servers() -> None:
    assert set(METRIC_LOSSES) == set(metric_names.METRIC_LOSSES)
    assert set(MINERS) == set(metric_names.METRIC_MINERS)
