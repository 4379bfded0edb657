"""Weights between the base and the trained ones, swept and chosen at the end of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.jobs import all_events, ended

from hotclip_proto.v1 import finetune_pb2, job_pb2
from hotclip_server.errors import FailedPrecondition, InvalidArgument
from hotclip_server.jobs.context import JobContext
from hotclip_server.jobs.records import JobKind, JobRecord, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.specs import EvaluateSpec
from hotclip_server.jobs.states import JobState
from hotclip_server.services.finetune import check_evaluate
from hotclip_server.storage.database import Database
from hotclip_server.training.evaluate import Evaluation
from hotclip_server.training.evaluate_job import EvaluateHandler
from hotclip_server.training.finetune_job import FineTuneHandler
from hotclip_server.training.wise_ft import ALPHAS, interpolate, sweep
from tests.unit.training.test_finetune_job import Desk, Sets, Shelf, place, spec
from tests.unit.training.tiny import tiny_clip, weights


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    yield database
    database.close()


def test_the_ends_are_exact_and_the_middle_is_linear() -> None:
    base, tuned = weights(tiny_clip(resnet=True)), weights(tiny_clip(resnet=True, seed=1))
    model = tiny_clip(resnet=True, seed=2).model
    for alpha, wanted in ((0.0, base), (1.0, tuned)):
        interpolate(model, base, tuned, alpha)
        for name, value in model.state_dict().items():
            expected = wanted if value.is_floating_point() else tuned
            assert torch.equal(value, expected[name])
    interpolate(model, base, tuned, 0.25)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            expected = 0.75 * base[name].double() + 0.25 * tuned[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)


def test_what_is_equal_stays_so_to_the_bit() -> None:
    base, tuned = weights(tiny_clip()), weights(tiny_clip(seed=1))
    for state in (base, tuned):
        state["visual.conv1.weight"].fill_(-0.0)
    model = tiny_clip(seed=2).model
    for alpha in (0.0, 0.25, 1.0):
        interpolate(model, base, tuned, alpha)
        assert torch.signbit(model.state_dict()["visual.conv1.weight"]).all()


def test_a_sweep_measures_what_is_not_known() -> None:
    base, tuned = weights(tiny_clip()), weights(tiny_clip(seed=1))
    model = tiny_clip(seed=2).model
    measured: list[float] = []

    def evaluate() -> Evaluation:
        scale = model.state_dict()["token_embedding.weight"].flatten()[0]
        ends = [state["token_embedding.weight"].flatten()[0] for state in (base, tuned)]
        measured.append(round(float((scale - ends[0]) / (ends[1] - ends[0])), 4))
        return Evaluation(metrics={"alpha": measured[-1]}, k=1, loss=0.0)

    known = {alpha: Evaluation(metrics={"alpha": alpha}, k=1, loss=0.0) for alpha in (0.0, 1.0)}
    found = list(sweep(model, base, tuned, evaluate, known=known))
    assert measured == [0.25, 0.5, 0.75]
    assert [(a, e.metrics["alpha"]) for a, e in found] == [(a, a) for a in ALPHAS]


@pytest.mark.parametrize("alpha", [0.25, 0.4])
async def test_a_run_ends_between_base_and_trained(database: Database, alpha: float) -> None:
    plain, mixed = Shelf({"base": tiny_clip()}), Shelf({"base": tiny_clip()})
    await run(database, plain, None)
    events = await run(database, mixed, alpha)
    base, tuned = weights(tiny_clip()), weights(plain.saved[0])
    expected = tiny_clip().model
    interpolate(expected, base, tuned, alpha)
    for name, value in mixed.saved[0].model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=0, atol=1e-6)
    stages = job_pb2.MetricEvent
    swept = [
        {metric.name: metric.value for metric in event.metric.metrics}
        for event in events
        if event.metric.stage == stages.STAGE_ALPHA
    ]
    assert [point["alpha"] for point in swept] == sorted({*ALPHAS, alpha})
    (after,) = [
        {metric.name: metric.value for metric in event.metric.metrics}
        for event in events
        if event.metric.stage == stages.STAGE_AFTER
    ]
    assert {**after, "alpha": alpha} == next(p for p in swept if p["alpha"] == alpha)
    (before,) = [e for e in events if e.metric.stage == stages.STAGE_BEFORE]
    told = {metric.name: metric.value for metric in before.metric.metrics}
    assert {**told, "alpha": 0.0} == swept[0]


async def run(database: Database, shelf: Shelf, alpha: float | None) -> list[job_pb2.JobEvent]:
    asked = replace(spec(), wise_ft=alpha)
    runner = JobRunner(database, [FineTuneHandler(place(shelf, database), Desk())])
    await runner.start()
    job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
    record = await ended(runner, job.id)
    events = await all_events(runner, job.id)
    await runner.stop()
    assert record.state is JobState.SUCCEEDED, record.error
    assert "alpha" not in record.metrics
    return events


async def test_a_run_ends_with_files(database: Database) -> None:
    exported: list[str] = []

    def export(job: JobContext, version: str, model: str) -> str:
        exported.append(f"{model}/{version}")
        if len(exported) > 1:
            raise FailedPrecondition("no such graph", reason="EXPORT_UNSUPPORTED")
        return "art-1"

    shelf = Shelf({"base": tiny_clip()})
    runner = JobRunner(
        database, [FineTuneHandler(place(shelf, database), Desk(), export_onnx=export)]
    )
    await runner.start()
    asked = replace(spec(), export_onnx=True)
    for artifacts in (("art-1",), ()):
        job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
        record = await ended(runner, job.id)
        assert record.state is JobState.SUCCEEDED, record.error
        assert (record.result_version, record.artifacts) == ("new", artifacts)
    events = await all_events(runner, job.id)
    assert any("no such graph" in event.log.message for event in events)
    await runner.stop()
    assert exported == ["default/new"] * 2


async def test_cancelled_after_the_release_it_has_succeeded(database: Database) -> None:
    loop, desk = asyncio.get_running_loop(), Desk()

    def export(job: JobContext, version: str, model: str) -> str:
        asyncio.run_coroutine_threadsafe(runner.cancel(job.id), loop).result()
        job.check_cancelled()
        return "art-1"

    handler = FineTuneHandler(
        place(Shelf({"base": tiny_clip()}), database), desk, export_onnx=export
    )
    runner = JobRunner(database, [handler])
    await runner.start()
    asked = replace(spec(), export_onnx=True)
    job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
    record = await ended(runner, job.id)
    events = await all_events(runner, job.id)
    await runner.stop()
    assert desk.live == "new"
    assert record.state is JobState.SUCCEEDED, record.error
    assert (record.result_version, record.activated, record.artifacts) == ("new", True, ())
    assert any("no ONNX files: cancelled" in event.log.message for event in events)


async def test_versions_are_measured_along_the_line(database: Database) -> None:
    shelf = Shelf(
        {"base": tiny_clip(), "tuned": tiny_clip(seed=1), "other": tiny_clip(resnet=True)}
    )
    runner = JobRunner(database, [EvaluateHandler(shelf, Sets())])
    await runner.start()

    async def evaluate(base: str) -> tuple[JobRecord, list[job_pb2.JobEvent]]:
        asked = EvaluateSpec(
            model="default",
            version="tuned",
            dataset="ds-1",
            index_dataset="",
            k=5,
            base_version=base,
            alphas=(0.0, 0.5, 1.0) if base else (),
        )
        job = await runner.submit(NewJob(kind=JobKind.EVALUATE, spec=asked.to_json()))
        return await ended(runner, job.id), await all_events(runner, job.id)

    plain, _ = await evaluate("")
    record, events = await evaluate("base")
    assert record.metrics == plain.metrics
    swept = [
        {metric.name: metric.value for metric in event.metric.metrics}
        for event in events
        if event.metric.stage == job_pb2.MetricEvent.STAGE_ALPHA
    ]
    assert [point.pop("alpha") for point in swept] == [0.0, 0.5, 1.0]
    assert swept[-1] == plain.metrics
    assert swept[0] != swept[-1]
    failed, _ = await evaluate("other")
    assert failed.error is not None
    assert failed.error.reason == "ARCHITECTURES_DIFFER"
    await runner.stop()


def test_a_bad_sweep_is_named() -> None:
    good = finetune_pb2.EvaluateRequest(dataset="ds", alphas=[0, 0.5, 1], base_version="v")
    assert check_evaluate(good) == 20
    for bad, field in (
        (finetune_pb2.EvaluateRequest(dataset="ds", alphas=[1.1]), "alphas"),
        (finetune_pb2.EvaluateRequest(dataset="ds", alphas=[float("nan")]), "alphas"),
        (finetune_pb2.EvaluateRequest(dataset="ds", alphas=[0.5] * 33), "alphas"),
        (finetune_pb2.EvaluateRequest(dataset="ds", base_version="v"), "base_version"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            check_evaluate(bad)
        assert [violation.field for violation in caught.value.violations] == [field]
