"""A job on the wire says what it was told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from hotclip._jobs import job as parsed
from hotclip_server.drift.spec import DriftSpec
from hotclip_server.jobs.records import JobKind, JobRecord
from hotclip_server.jobs.specs import ActivationRule, EvaluateSpec, FineTuneSpec
from hotclip_server.jobs.states import JobState
from hotclip_server.models.lineage import Lineage
from hotclip_server.services.jobs import job_config, job_to_proto
from hotclip_server.storage.database import now
from hotclip_server.training.config import TrainConfig

TUNE = FineTuneSpec(
    model="default",
    base_version="ver-1",
    train_dataset="ds-1",
    eval_dataset="",
    index_dataset="",
    val_split=0.1,
    activation=ActivationRule.NEVER,
    config=TrainConfig(learning_rate=3e-5, epochs=7),
)


def record(kind: JobKind, spec: Mapping[str, Any]) -> JobRecord:
    return JobRecord(
        id="job-1",
        name="first",
        kind=kind,
        state=JobState.QUEUED,
        model="default",
        description="",
        spec=spec,
        create_time=now(),
        start_time=None,
        end_time=None,
        progress=0,
        last_seq=1,
        error=None,
        result_version="",
        activated=False,
    )


def test_a_fine_tune_tells_its_settings_its_data_and_its_base() -> None:
    stored = json.loads(json.dumps(TUNE.to_json()))
    told = parsed(job_to_proto(record(JobKind.FINE_TUNE, stored))).config
    assert (told["base_version"], told["train_dataset"]) == ("ver-1", "ds-1")
    assert (told["activation"], told["wise_ft"], told["val_split"]) == ("NEVER", None, 0.1)
    assert (told["config"]["learning_rate"], told["config"]["epochs"]) == (3e-5, 7)
    assert Lineage.of_job("job-1", stored).config.items() <= told.items()
    assert {"model", "datasets"} & set(told) == set()
    # Before it is stored it is told in the same way.
    assert job_config(TUNE.to_json()) == job_config(stored)


@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        (
            JobKind.EVALUATE,
            EvaluateSpec(
                model="default", version="ver-1", dataset="ds-1", index_dataset="", k=5
            ).to_json(),
            {"version": "ver-1", "dataset": "ds-1", "k": 5, "compat": "standard"},
        ),
        (
            JobKind.REINDEX,
            {"collection": "shop", "version": "ver-1"},
            {"collection": "shop", "version": "ver-1"},
        ),
        (
            JobKind.DRIFT,
            DriftSpec(
                model="default",
                version="ver-2",
                base_version="ver-1",
                collections=("shop",),
                dataset="",
                texts=("a red dress",) * 1000,
            ).to_json(),
            {"version": "ver-2", "base_version": "ver-1", "collections": ["shop"]},
        ),
    ],
)
def test_every_kind_tells_what_it_is_about(
    kind: JobKind, spec: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    told = parsed(job_to_proto(record(kind, spec))).config
    assert expected.items() <= told.items()
    assert "texts" not in told


def test_a_list_of_jobs_may_leave_it_out() -> None:
    message = job_to_proto(record(JobKind.FINE_TUNE, TUNE.to_json()), config=False)
    assert not message.HasField("config")
    assert parsed(message).config == {}
