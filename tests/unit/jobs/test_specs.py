from __future__ import annotations

import json
from dataclasses import replace

from hotclip_server.jobs.specs import (
    ActivationRule,
    EarlyStopping,
    EvaluateSpec,
    FineTuneSpec,
    Isolation,
    Tracker,
)
from hotclip_server.training.config import (
    AugmentConfig,
    LoraConfig,
    MetricLossConfig,
    MiningConfig,
    TrainConfig,
)


def test_specs_survive_json() -> None:
    tune = FineTuneSpec(
        model="default",
        base_version="v1",
        train_dataset="ds-1",
        eval_dataset="",
        index_dataset="ds-2",
        val_split=0.1,
        activation=ActivationRule.ALWAYS,
        config=TrainConfig(
            max_steps=3,
            augment=AugmentConfig(crop=(0.8, 1.0)),
            lora=LoraConfig(targets=("q", "out")),
            loss="metric",
            metric_loss=MetricLossConfig(name="TripletMarginLoss", options={"margin": 0.2}),
        ),
        prompts=("a {label}", "{label}"),
        early_stopping=EarlyStopping(patience=3),
        isolation=Isolation.PROCESS,
        trackers=(Tracker.WANDB,),
        replay_dataset="ds-3",
        query_dataset="ds-4",
        monitor="validation_loss",
        soup=3,
        device="cpu",
    )
    stored = json.loads(json.dumps(tune.to_json()))
    assert stored["datasets"] == ["ds-1", "ds-2", "ds-3", "ds-4"]
    assert FineTuneSpec.from_json(stored) == tune
    # A job that waits since before there were these.
    for name in ("query_dataset", "monitor"):
        del stored[name]
    assert FineTuneSpec.from_json(stored) == replace(tune, query_dataset="", monitor="monitor")
    mined = replace(tune, config=TrainConfig(mining=MiningConfig(collection="c", every=2)))
    assert FineTuneSpec.from_json(json.loads(json.dumps(mined.to_json()))) == mined
    measure = EvaluateSpec(model="m", version="v", dataset="ds-1", index_dataset="", k=5)
    stored = json.loads(json.dumps(measure.to_json()))
    assert stored["datasets"] == ["ds-1"]
    assert EvaluateSpec.from_json(stored) == measure
