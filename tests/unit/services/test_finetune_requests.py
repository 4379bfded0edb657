from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hotclip_proto.v1 import finetune_pb2 as pb
from hotclip_server.errors import InvalidArgument
from hotclip_server.jobs.specs import ActivationRule, EarlyStopping, Isolation, Tracker
from hotclip_server.services.finetune_choices import CHOICES
from hotclip_server.services.finetune_requests import check_evaluate, check_fine_tune
from hotclip_server.training.config import (
    AugmentConfig,
    LoraConfig,
    MiningConfig,
    TrainConfig,
)
from hotclip_server.training.metric_names import METRIC_LOSSES, METRIC_MINERS

TRIPLET = {"name": "TripletMarginLoss"}
METRIC = {"loss": pb.LOSS_METRIC}


def request(**changes: Any) -> pb.FineTuneRequest:
    return pb.FineTuneRequest(**{"train_dataset": "d", **changes})


def fields(error: InvalidArgument) -> list[str]:
    return [violation.field for violation in error.violations]


def test_an_empty_request_has_the_stated_defaults() -> None:
    spec = check_fine_tune(request()).spec
    assert spec == {
        "val_split": 0.1,
        "monitor": "monitor",
        "activation": ActivationRule.IF_BETTER,
        "config": TrainConfig(method="auto"),
        "prompts": ("a photo of {label}",),
        "wise_ft": None,
        "soup": 0,
        "early_stopping": None,
        "keep_checkpoints": 2,
        "export_onnx": False,
        "isolation": Isolation.IN_PROCESS,
        "device": "",
        "trackers": (),
        "k": 20,
        "compat": "standard",
    }
    config = spec["config"]
    assert (config.ema, config.decay, config.positives) == (0, 1, "off")
    assert not config.augment.changes


def test_everything_that_is_asked_for_arrives() -> None:
    spec = check_fine_tune(
        request(
            eval_dataset="e",
            max_steps=7,
            batch_size=32,
            chunk_size=8,
            method=pb.METHOD_LORA,
            lora=pb.Lora(rank=4, alpha=8, dora=True, targets=["q", "mlp"]),
            freeze_layers=1,
            lock_text=True,
            loss=pb.LOSS_METRIC,
            negatives=0,
            metric_loss=metric(**TRIPLET, options={"margin": 0.2, "swap": True}),
            preserve=2,
            optimizer=pb.OPTIMIZER_SGD,
            scheduler=pb.SCHEDULER_POLYNOMIAL,
            scheduler_power=3,
            momentum=0.5,
            precision=pb.PRECISION_FP32,
            augment=False,
            seed=2**63 - 1,
            prompts=["{label}", "a {label}", "{label}"],
            early_stopping=pb.EarlyStopping(
                monitor="clip-text-to-clip-vision_mean_rank", patience=4, min_delta=0.5
            ),
            keep_checkpoints=5,
            wise_ft=0,
            soup=3,
            export_onnx=True,
            isolation=pb.ISOLATION_PROCESS,
            device="cuda:1",
            trackers=["wandb", "mlflow"],
            k=5,
            compat=pb.METRIC_COMPAT_FINETUNER,
        )
    ).spec
    config = spec["config"]
    assert config.metric_loss is not None
    assert dict(config.metric_loss.options) == {"margin": 0.2, "swap": True}
    assert config.lora == LoraConfig(rank=4, alpha=8.0, dora=True, targets=("q", "mlp"))
    assert config.augment == AugmentConfig()
    assert (config.optimizer, config.momentum) == ("sgd", 0.5)
    assert (config.scheduler, config.scheduler_power) == ("polynomial", 3)
    assert (config.chunk_size, config.freeze_layers, config.negatives) == (8, 1, 0)
    assert spec["prompts"] == ("{label}", "a {label}")
    # A lower rank is better, unless the caller says otherwise.
    assert spec["early_stopping"] == EarlyStopping(
        monitor="clip-text-to-clip-vision_mean_rank", patience=4, min_delta=0.5, higher=False
    )
    assert (spec["wise_ft"], spec["soup"], spec["device"]) == (0.0, 3, "cuda:1")
    assert spec["isolation"] is Isolation.PROCESS
    assert spec["trackers"] == (Tracker.WANDB, Tracker.MLFLOW)
    assert (spec["k"], spec["compat"]) == (5, "finetuner")


def test_settings_that_exclude_each_other_arrive_as_well() -> None:
    config = check_fine_tune(
        request(
            epochs=3,
            positives=pb.POSITIVES_MASK,
            negatives=2,
            scheduler=pb.SCHEDULER_COSINE_WITH_RESTARTS,
            scheduler_cycles=4,
            beta1=0.8,
            beta2=0.9,
            index_dataset="more",
        )
    ).spec["config"]
    assert (config.epochs, config.max_steps) == (3, None)
    assert (config.positives, config.negatives) == ("mask", 2)
    assert (config.scheduler_cycles, config.beta1, config.beta2) == (4, 0.8, 0.9)


@pytest.mark.parametrize(
    ("changes", "crops"),
    [
        ({}, False),
        ({"augment": False}, False),
        ({"augment": True}, True),
        ({"lock_image": True, "augment": True}, True),
    ],
)
def test_images_are_cropped_only_if_asked_for(changes: Mapping[str, Any], crops: bool) -> None:
    found = check_fine_tune(request(**changes)).spec["config"].augment
    assert found == (AugmentConfig(crop=(0.9, 1.0)) if crops else AugmentConfig())


def test_what_is_mined_has_the_stated_defaults() -> None:
    assert check_fine_tune(request(mining=pb.Mining())).spec["config"].mining == MiningConfig()
    asked = pb.Mining(collection="c", count=2, pool=4, ceiling=0.5, every=3)
    assert check_fine_tune(request(mining=asked)).spec["config"].mining == MiningConfig(
        collection="c", count=2, pool=4, ceiling=0.5, every=3
    )


def metric(**values: Any) -> pb.MetricLoss:
    made = pb.MetricLoss(**{n: v for n, v in values.items() if not n.endswith("options")})
    for name in ("options", "miner_options"):
        getattr(made, name).update(values.get(name, {}))
    return made


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_dataset": ""}, ["train_dataset"]),
        ({"epochs": 0}, ["epochs"]),
        ({"epochs": 1001}, ["epochs"]),
        ({"max_steps": 0}, ["max_steps"]),
        ({"batch_size": 1}, ["batch_size"]),
        ({"batch_size": 65_537}, ["batch_size"]),
        ({"chunk_size": 65_537}, ["chunk_size"]),
        ({"learning_rate": 0.0}, ["learning_rate"]),
        ({"learning_rate": float("nan")}, ["learning_rate"]),
        ({"warmup": 1.0}, ["warmup"]),
        ({"scheduler": 77}, ["scheduler"]),
        (
            {"scheduler": pb.SCHEDULER_COSINE_WITH_RESTARTS, "scheduler_cycles": 0},
            ["scheduler_cycles"],
        ),
        ({"scheduler": pb.SCHEDULER_POLYNOMIAL, "scheduler_power": 11}, ["scheduler_power"]),
        ({"scheduler_cycles": 3}, ["scheduler_cycles"]),
        ({"scheduler": pb.SCHEDULER_LINEAR, "scheduler_power": 3}, ["scheduler_power"]),
        ({"momentum": 0.5}, ["momentum"]),
        ({"optimizer": pb.OPTIMIZER_SGD, "beta1": 0.8, "beta2": 0.9}, ["beta1", "beta2"]),
        ({"epochs": 3, "max_steps": 9}, ["max_steps"]),
        ({"index_dataset": "more", "val_split": 0.0}, ["index_dataset"]),
        ({"monitor": "accuracy"}, ["monitor"]),
        ({"monitor": "epoch_loss"}, ["monitor"]),
        ({"monitor": "clip-text-to-clip-vision_queries"}, ["monitor"]),
        ({"monitor": "validation_loss", "val_split": 0.0}, ["monitor"]),
        (
            {"monitor": "accuracy", "early_stopping": pb.EarlyStopping(patience=0)},
            ["monitor", "early_stopping.patience"],
        ),
        (
            {
                "monitor": "monitor",
                "early_stopping": pb.EarlyStopping(monitor="monitor"),
                "val_split": 0.0,
            },
            ["monitor", "early_stopping.monitor"],
        ),
        (
            {**METRIC, "metric_loss": metric(**TRIPLET), "positives": pb.POSITIVES_SHARE},
            ["positives"],
        ),
        ({**METRIC, "metric_loss": metric(**TRIPLET), "negatives": 1}, ["negatives"]),
        ({"weight_decay": -1}, ["weight_decay"]),
        ({"clip_norm": 0}, ["clip_norm"]),
        ({"loss": 77}, ["loss"]),
        ({"loss": pb.LOSS_METRIC}, ["metric_loss"]),
        ({"metric_loss": metric(**TRIPLET)}, ["metric_loss"]),
        ({**METRIC, "metric_loss": metric(name="ArcFaceLoss")}, ["metric_loss.name"]),
        (
            {**METRIC, "metric_loss": metric(**TRIPLET, options={"margin": -1, "sawp": True})},
            ["metric_loss.options.margin", "metric_loss.options.sawp"],
        ),
        (
            {**METRIC, "metric_loss": metric(**TRIPLET, miner="NoMiner")},
            ["metric_loss.miner"],
        ),
        (
            {
                **METRIC,
                "metric_loss": metric(
                    **TRIPLET,
                    miner="TripletMarginMiner",
                    miner_options={"type_of_triplets": "soft"},
                ),
            },
            ["metric_loss.miner_options.type_of_triplets"],
        ),
        (
            {**METRIC, "metric_loss": metric(**TRIPLET, items_per_class=3)},
            ["metric_loss.items_per_class"],
        ),
        ({"positives": 77}, ["positives"]),
        ({"negatives": 17}, ["negatives"]),
        ({"preserve": -0.1}, ["preserve"]),
        ({"prompts": ["no place"]}, ["prompts[0]"]),
        ({"prompts": ["{label}", "x" * 600 + "{label}"]}, ["prompts[1]"]),
        ({"method": 77}, ["method"]),
        ({"lora": pb.Lora(rank=2), "method": pb.METHOD_FULL}, ["lora"]),
        ({"lora": pb.Lora(rank=65)}, ["lora.rank"]),
        ({"lora": pb.Lora(alpha=0)}, ["lora.alpha"]),
        ({"lora": pb.Lora(targets=["q", "w"])}, ["lora.targets[1]"]),
        ({"lock_image": True, "lock_text": True}, ["lock_text"]),
        ({"method": pb.METHOD_LIT, "lock_text": True}, ["lock_text"]),
        ({"method": pb.METHOD_PROJECTION, "freeze_layers": 2}, ["freeze_layers"]),
        ({"method": pb.METHOD_LORA, "layer_decay": 0.5}, ["layer_decay"]),
        ({"layer_decay": 0.0}, ["layer_decay"]),
        ({"optimizer": 77}, ["optimizer"]),
        ({"beta1": 1.0}, ["beta1"]),
        ({"beta2": -0.5}, ["beta2"]),
        ({"optimizer": pb.OPTIMIZER_SGD, "momentum": 1.5}, ["momentum"]),
        ({"ema": 1.5}, ["ema"]),
        ({"precision": 77}, ["precision"]),
        ({"seed": 2**63}, ["seed"]),
        ({"val_split": 0.6}, ["val_split"]),
        ({"val_split": 0.2, "eval_dataset": "e"}, ["val_split"]),
        ({"early_stopping": pb.EarlyStopping(monitor="accuracy")}, ["early_stopping.monitor"]),
        (
            {"early_stopping": pb.EarlyStopping(monitor="monitor"), "val_split": 0.0},
            ["early_stopping.monitor"],
        ),
        (
            {"mining": pb.Mining(pool=0, ceiling=1.5)},
            ["mining.pool", "mining.count", "mining.ceiling"],
        ),
        ({"mining": pb.Mining(count=9, every=0)}, ["mining.every", "mining.count"]),
        ({"early_stopping": pb.EarlyStopping(patience=0)}, ["early_stopping.patience"]),
        ({"early_stopping": pb.EarlyStopping(min_delta=-1)}, ["early_stopping.min_delta"]),
        ({"early_stopping": pb.EarlyStopping(mode=77)}, ["early_stopping.mode"]),
        ({"keep_checkpoints": 0}, ["keep_checkpoints"]),
        ({"wise_ft": 1.5}, ["wise_ft"]),
        ({"soup": 1}, ["soup"]),
        ({"soup": 3, "val_split": 0.0}, ["soup"]),
        ({"activation": 77}, ["activation"]),
        ({"isolation": 77}, ["isolation"]),
        ({"trackers": ["wandb", "neptune"]}, ["trackers[1]"]),
        ({"trackers": ["wandb", "wandb"]}, ["trackers"]),
        ({"k": 1001}, ["k"]),
        ({"compat": 9}, ["compat"]),
        ({"name": "a b"}, ["name"]),
        ({"description": "x" * 5000}, ["description"]),
        ({"request_id": "x" * 5000}, ["request_id"]),
    ],
)
def test_a_bad_value_is_named(changes: Mapping[str, Any], named: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_fine_tune(request(**changes))
    assert fields(caught.value) == named


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_fine_tune(request(epochs=0, warmup=2, soup=1, prompts=["x"], device="cuda:7"))
    assert set(fields(caught.value)) == {"epochs", "warmup", "soup", "prompts[0]"}


def test_every_value_of_every_enum_is_understood() -> None:
    numbers = {field: set(known) for field, known in CHOICES.items()}
    described = pb.FineTuneRequest.DESCRIPTOR.fields
    enums = {f.name: {v.number for v in f.enum_type.values} for f in described if f.enum_type}
    assert enums == numbers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, EarlyStopping(monitor="validation_loss", higher=False)),
        ({"mode": pb.EarlyStopping.MODE_MAX}, EarlyStopping(monitor="validation_loss")),
        ({"monitor": "monitor"}, EarlyStopping()),
        ({"monitor": "epoch_loss"}, EarlyStopping(monitor="epoch_loss", higher=False)),
    ],
)
def test_what_decides_also_ends_a_run_unless_that_names_another(
    given: Mapping[str, Any], expected: EarlyStopping
) -> None:
    stopping = pb.EarlyStopping(**given)
    spec = check_fine_tune(request(monitor="validation_loss", early_stopping=stopping)).spec
    assert (spec["monitor"], spec["early_stopping"]) == ("validation_loss", expected)


@pytest.mark.parametrize(
    ("changes", "split"),
    [({}, 0.0), ({"val_split": 0.2}, 0.2), ({"val_split": 0.0}, 0.0), ({"eval_dataset": "e"}, 0.0)],
)
def test_queries_are_data_to_measure_with(changes: Mapping[str, Any], split: float) -> None:
    """Nothing else is held out then, unless it is asked for."""
    asked = {"index_dataset": "i", "soup": 2, "monitor": "monitor", **changes}
    stopping = pb.EarlyStopping()
    spec = check_fine_tune(request(query_dataset="q", early_stopping=stopping, **asked)).spec
    assert spec["val_split"] == split


def test_an_epoch_loss_needs_nothing_held_out() -> None:
    stopping = pb.EarlyStopping(monitor="epoch_loss", mode=pb.EarlyStopping.MODE_MAX)
    spec = check_fine_tune(request(early_stopping=stopping, val_split=0.0)).spec
    assert spec["early_stopping"] == EarlyStopping(monitor="epoch_loss", higher=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dataset": ""}, "dataset"),
        ({"k": 0}, "k"),
        ({"compat": 9}, "compat"),
        ({"alphas": [1.1]}, "alphas"),
        ({"base_version": "v"}, "base_version"),
        ({"prompts": ["x"]}, "prompts[0]"),
    ],
)
def test_a_bad_value_of_an_evaluation_is_named(changes: Mapping[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_evaluate(pb.EvaluateRequest(**{"dataset": "d", **changes}))
    assert fields(caught.value) == [named]


def test_finetuners_losses_and_miners_are_known() -> None:
    assert {"TripletMarginLoss", "CircleLoss", "NTXentLoss", "SupConLoss"} <= set(METRIC_LOSSES)
    assert {"TripletMarginMiner", "MultiSimilarityMiner", "BatchHardMiner"} <= set(METRIC_MINERS)


def test_nothing_is_split_off_where_data_is_held_out_apart() -> None:
    assert check_fine_tune(request()).spec["val_split"] > 0
    assert check_fine_tune(request(eval_dataset="apart")).spec["val_split"] == 0
