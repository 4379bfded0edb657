"""The fine-tune as a job: what is never released, and against what it is compared."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.jobs import all_events, ended

from hotclip_server.errors import Aborted, ResourceExhausted
from hotclip_server.jobs.records import JobKind, JobRecord, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.specs import ActivationRule, FineTuneSpec
from hotclip_server.jobs.states import JobState
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.models.state import ModelState
from hotclip_server.storage.database import Database
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import AugmentConfig, TrainConfig
from hotclip_server.training.finetune_job import FineTuneHandler
from hotclip_server.training.finetune_work import Workplace
from hotclip_server.training.trainer import train
from tests.unit.training.tiny import colours, tiny_clip

CONFIG = TrainConfig(
    max_steps=12, batch_size=6, learning_rate=3e-3, augment=AugmentConfig(crop=(1.0, 1.0))
)


@dataclass
class Shelf:
    """Versions in memory."""

    clips: dict[str, Clip]
    saved: list[Clip] = field(default_factory=list)

    def load(self, version_id: str, *, device: str) -> Any:
        clip = copy.deepcopy(self.clips[version_id])
        return SimpleNamespace(model=clip.model, tokenizer=clip.tokenizer)

    def read_manifest(self, version_id: str) -> VersionManifest:
        return SimpleNamespace(size_bytes=1000)  # type: ignore[return-value]  # only its size is read

    def save_trained(self, model: torch.nn.Module, *, base: str, source: str) -> VersionManifest:
        clip = copy.deepcopy(replace(self.clips[base], model=model))
        self.saved.append(clip)
        self.clips["new"] = clip
        return SimpleNamespace(id="new")  # type: ignore[return-value]  # only its id is read


@dataclass
class Desk:
    """A registry that notes what it is asked."""

    live: str = "base"
    calls: list[str] = field(default_factory=list)
    rivals: list[str] = field(default_factory=list)
    """Versions that go live just before an activation."""
    full: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)

    def register(self, model: str, manifest: Any, metrics: Mapping[str, float]) -> None:
        self.calls.append("register")
        self.metrics = metrics

    def stage(self, version_id: str) -> None:
        if self.full:
            raise ResourceExhausted("no memory", reason="OUT_OF_MEMORY")
        self.calls.append("stage")

    def state(self, model: str) -> ModelState:
        return ModelState(
            name=model,
            live_version=self.live,
            previous_version="",
            staged_versions=(),
            etag=self.live,
            space_id="",
        )

    def activate(self, model: str, version_id: str, etag: str = "") -> None:
        if self.rivals:
            self.live = self.rivals.pop(0)
        if etag and etag != self.live:
            raise Aborted("another etag")
        self.calls.append("activate")
        self.live = version_id


class Sets:
    """One dataset, whatever is asked for."""

    def load(self, dataset_id: str) -> Any:
        data = colours(12)
        return SimpleNamespace(
            pairs=data.pairs,
            image_bytes=data.image_bytes,
            locate=lambda pause: None,
            close=lambda: None,
        )


def place(shelf: Shelf, database: Database) -> Workplace:
    """States go beside the database, as often as may be."""
    folder = Path(database._url.removeprefix("sqlite:///")).parent
    return Workplace(versions=shelf, datasets=Sets(), folders=folder / "checkpoints", every_s=0.0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    yield database
    database.close()


def spec(rule: ActivationRule = ActivationRule.IF_BETTER, *, held_out: bool = True) -> FineTuneSpec:
    return FineTuneSpec(
        model="default",
        base_version="base",
        train_dataset="ds-1",
        eval_dataset="ds-1" if held_out else "",
        index_dataset="",
        val_split=0.0,
        activation=rule,
        config=CONFIG,
    )


async def fine_tune(
    database: Database, shelf: Shelf, desk: Desk, asked: FineTuneSpec
) -> tuple[JobRecord, str]:
    """The job at its end, and what its log says."""
    runner = JobRunner(database, [FineTuneHandler(place(shelf, database), desk)])
    await runner.start()
    job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
    record = await ended(runner, job.id)
    events = await all_events(runner, job.id)
    await runner.stop()
    return record, "\n".join(event.log.message for event in events)


async def test_the_best_weights_are_released_and_the_base_is_untouched(
    database: Database,
) -> None:
    shelf, desk = Shelf({"base": tiny_clip()}), Desk()
    before = copy.deepcopy(shelf.clips["base"].model.state_dict())
    record, log = await fine_tune(database, shelf, desk, spec())
    assert record.state is JobState.SUCCEEDED, record.error
    assert (record.result_version, record.activated) == ("new", True)
    assert desk.calls == ["register", "stage", "activate"]
    assert desk.metrics["monitor"] == record.metrics["monitor"]
    assert record.metrics["validation_loss"] == desk.metrics["validation_loss"] > 0
    assert record.metrics["skipped_steps"] == 0
    assert 0 <= record.metrics["yielded_share"] <= 1
    assert record.metrics["data_wait_s"] > 0
    assert "it flatters" in log
    after = shelf.clips["base"].model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    new = shelf.saved[0].model.state_dict()
    assert any(not torch.equal(before[name], new[name]) for name in before)


async def test_weights_that_are_not_finite_are_never_stored(database: Database) -> None:
    broken = tiny_clip()
    with torch.no_grad():
        next(broken.model.parameters()).fill_(torch.nan)
    shelf, desk = Shelf({"base": broken}), Desk()
    blind, log = await fine_tune(database, shelf, desk, spec(ActivationRule.ALWAYS, held_out=False))
    assert blind.state is JobState.FAILED
    assert blind.error is not None
    assert blind.error.reason == "TRAINING_DIVERGED"
    assert "was not finite" in log
    measured, _ = await fine_tune(database, shelf, desk, spec(ActivationRule.ALWAYS))
    assert measured.error is not None
    assert measured.error.reason == "VERSION_UNFIT"
    assert (shelf.saved, desk.calls, desk.live) == ([], [], "base")


async def test_compared_again_when_another_version_goes_live_meanwhile(
    database: Database,
) -> None:
    shelf, desk = Shelf({"base": tiny_clip(), "poor": tiny_clip(seed=5)}), Desk(rivals=["poor"])
    record, log = await fine_tune(database, shelf, desk, spec())
    assert record.activated
    assert "comparing again" in log
    assert desk.live == "new"


async def test_stays_staged_when_the_rival_is_better(database: Database) -> None:
    rival = tiny_clip()
    longer = replace(CONFIG, max_steps=80, batch_size=12)
    list(train(rival, colours(12), longer))
    shelf, desk = Shelf({"base": tiny_clip(), "rival": rival}), Desk(rivals=["rival"])
    record, log = await fine_tune(database, shelf, desk, spec())
    assert record.state is JobState.SUCCEEDED
    assert not record.activated
    assert desk.live == "rival"
    assert "live version rival has" in log


async def test_no_memory_to_train_in_is_said_before_loading(database: Database) -> None:
    shelf = Shelf({"base": tiny_clip()})
    handler = FineTuneHandler(place(shelf, database), Desk(), free_bytes=lambda: 3500)
    runner = JobRunner(database, [handler])
    await runner.start()
    for changes in ({}, {"lock_image": True}, {"method": "lora", "preserve": 1.0}):
        asked = replace(spec(), config=replace(CONFIG, **changes))
        job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
        record = await ended(runner, job.id)
        assert record.error is not None
        assert record.error.reason == "OUT_OF_MEMORY"
        assert shelf.saved == []
    # Factors need less: that is what they are for.
    asked = replace(spec(), config=replace(CONFIG, method="lora"))
    job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
    record = await ended(runner, job.id)
    assert record.state is JobState.SUCCEEDED, record.error
    await runner.stop()


async def test_a_full_device_leaves_the_version_stored(database: Database) -> None:
    shelf, desk = Shelf({"base": tiny_clip()}), Desk(full=True)
    record, log = await fine_tune(database, shelf, desk, spec(ActivationRule.NEVER))
    assert record.state is JobState.SUCCEEDED
    assert record.result_version == "new"
    assert "is not staged: no memory" in log


async def test_what_a_broken_attempt_put_live_counts_as_activated(database: Database) -> None:
    # The server died between the activation and the end of the job.
    shelf, desk = Shelf({"base": tiny_clip()}), Desk(live="new")
    record, log = await fine_tune(database, shelf, desk, spec())
    assert record.state is JobState.SUCCEEDED, record.error
    assert (record.result_version, record.activated) == ("new", True)
    assert "activate" not in desk.calls
    assert "it is live" in log


async def test_where_nothing_is_live_there_is_the_base_to_beat(database: Database) -> None:
    shelf, desk = Shelf({"base": tiny_clip()}), Desk(live="")
    record, log = await fine_tune(database, shelf, desk, spec())
    assert record.state is JobState.SUCCEEDED, record.error
    assert (record.activated, desk.live) == (True, "new")
    assert "version base had" in log
    # With the learning rate as good as 0 nothing gets better.
    still = replace(spec(), config=replace(CONFIG, learning_rate=1e-30, ema=0.0))
    desk = Desk(live="")
    record, log = await fine_tune(database, Shelf({"base": tiny_clip()}), desk, still)
    assert record.state is JobState.SUCCEEDED, record.error
    assert (record.activated, desk.live) == (False, "")
    assert "nothing is live, its base base has" in log


async def test_data_in_which_nothing_fits_is_to_blame_for_it(database: Database) -> None:
    class Unfit(Sets):
        def load(self, dataset_id: str) -> Any:
            found = super().load(dataset_id)
            found.pairs = [replace(pair, score=0.0) for pair in found.pairs]
            return found

    shelf = Shelf({"base": tiny_clip()})
    where = replace(place(shelf, database), datasets=Unfit())
    runner = JobRunner(database, [FineTuneHandler(where, Desk())])
    await runner.start()
    job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=spec().to_json()))
    record = await ended(runner, job.id)
    await runner.stop()
    assert record.error is not None
    assert record.error.reason == "PAIRS_INVALID"
    assert "all scores are 0" in record.error.message


@pytest.mark.parametrize("cooperates", [True, False], ids=["thread", "process"])
async def test_it_looks_who_waits_between_layers(database: Database, cooperates: bool) -> None:
    """A process gives way as a whole, but the kernel can't tell that it is half done."""
    looks = 0

    def pressure_s() -> float:
        nonlocal looks
        looks += 1
        return 0.0

    shelf = Shelf({"base": tiny_clip()})
    where = replace(place(shelf, database), cooperates=cooperates)
    runner = JobRunner(database, [FineTuneHandler(where, Desk())], pressure_s=pressure_s)
    await runner.start()
    asked = spec(ActivationRule.NEVER, held_out=False)
    job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
    record = await ended(runner, job.id)
    await runner.stop()
    assert record.state is JobState.SUCCEEDED, record.error
    layers = sum(isinstance(one, torch.nn.Linear) for one in shelf.clips["base"].model.modules())
    steps = CONFIG.max_steps or 0
    assert looks > steps * layers
