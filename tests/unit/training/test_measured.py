"""What a fine-tune is measured with, what decides, and that none of it is trained on unawares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.jobs import all_events, ended

from hotclip_proto.v1 import job_pb2
from hotclip_server.datasets.joined import JoinedPairs
from hotclip_server.jobs.context import Level
from hotclip_server.jobs.records import JobKind, JobRecord, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.specs import ActivationRule, FineTuneSpec
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database
from hotclip_server.training.config import MiningConfig
from hotclip_server.training.evaluate import Evaluation, Evaluator, metrics_of
from hotclip_server.training.finetune_job import FineTuneHandler
from hotclip_server.training.finetune_work import LocalWork, Workplace, local_work
from hotclip_server.training.pairs import MemoryPairs, Pair, PairSet
from hotclip_server.training.split import split_pairs
from hotclip_server.training.standing import Standing
from tests.unit.training.test_finetune_job import CONFIG, Desk, Shelf
from tests.unit.training.test_preparing import Watched
from tests.unit.training.tiny import picture, tiny_clip, weights

MRR = ("clip-text-to-clip-vision_reciprocal_rank", "clip-vision-to-clip-text_reciprocal_rank")


def drawn(letter: str, count: int, **changes: Any) -> MemoryPairs:
    """Pairs of a letter, with images of their own that are named by their content."""
    shade = 50 * "tqeio".index(letter)
    images = [picture((17 * n % 256, shade, 255 - 11 * n)) for n in range(count)]
    keys = [hashlib.sha256(image).hexdigest() for image in images]
    pairs = [Pair(key, f"{letter} {n}", **changes) for n, key in enumerate(keys)]
    return MemoryPairs(pairs, dict(zip(keys, images, strict=True)))


TRAIN, QUERIES, EVAL = drawn("t", 12), drawn("q", 5), drawn("e", 8)
INDEX, OLD = drawn("i", 6), drawn("o", 4)
SETS = {"train": TRAIN, "queries": QUERIES, "eval": EVAL, "index": INDEX, "old": OLD}


@dataclass
class Sets:
    """Datasets in memory."""

    sets: Mapping[str, MemoryPairs] = field(default_factory=lambda: SETS)

    def load(self, dataset_id: str) -> Any:
        data = self.sets[dataset_id]
        return SimpleNamespace(
            pairs=data.pairs,
            image_bytes=data.image_bytes,
            locate=lambda pause: None,
            close=lambda: None,
        )


SPEC = FineTuneSpec(
    model="default",
    base_version="base",
    train_dataset="train",
    eval_dataset="",
    query_dataset="queries",
    index_dataset="index",
    val_split=0.0,
    activation=ActivationRule.NEVER,
    config=CONFIG,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    yield database
    database.close()


@pytest.fixture
def where(tmp_path: Path) -> Workplace:
    shelf, folders = Shelf({"base": tiny_clip(), "rival": tiny_clip(seed=3)}), tmp_path / "states"
    return Workplace(versions=shelf, datasets=Sets(), folders=folders, every_s=0.0)


@dataclass(frozen=True)
class Ended:
    """A job at its end."""

    record: JobRecord
    events: Sequence[job_pb2.JobEvent]

    @property
    def log(self) -> str:
        return "\n".join(event.log.message for event in self.events)

    def measured(self, stage: str) -> list[dict[str, float]]:
        number = job_pb2.MetricEvent.Stage.Value(f"STAGE_{stage}")
        return [
            {metric.name: metric.value for metric in event.metric.metrics}
            for event in self.events
            if event.HasField("metric") and event.metric.stage == number
        ]


async def fine_tune(
    database: Database, where: Workplace, asked: FineTuneSpec, desk: Desk | None = None, **how: Any
) -> Ended:
    runner = JobRunner(database, [FineTuneHandler(where, desk or Desk(), **how)])
    await runner.start()
    job = await runner.submit(NewJob(kind=JobKind.FINE_TUNE, spec=asked.to_json()))
    record = await ended(runner, job.id)
    events = await all_events(runner, job.id)
    await runner.stop()
    assert record.state is JobState.SUCCEEDED, record.error
    return Ended(record, events)


@pytest.mark.parametrize(
    ("changes", "rated"),
    [
        ({"eval_dataset": "eval"}, EVAL),
        ({"val_split": 0.25}, split_pairs(TRAIN, 0.25, CONFIG.seed)[1]),
        ({}, QUERIES),
    ],
    ids=["eval_dataset", "val_split", "neither"],
)
async def test_retrieval_is_of_the_queries_and_the_loss_of_what_is_held_out(
    database: Database, where: Workplace, changes: Mapping[str, Any], rated: PairSet
) -> None:
    found = await fine_tune(database, where, replace(SPEC, **changes))
    clip = tiny_clip()
    expected = Evaluator(clip, QUERIES, JoinedPairs(QUERIES, INDEX)).evaluate(clip)
    loss = Evaluator(clip, rated, loss_batch=CONFIG.batch_size).evaluate(clip).loss
    (before,) = found.measured("BEFORE")
    assert before == pytest.approx({**metrics_of(expected), "validation_loss": loss}, abs=1e-6)
    assert before["clip-text-to-clip-vision_queries"] == len(QUERIES.pairs)
    epochs = [epoch["monitor"] for epoch in found.measured("EPOCH")]
    assert found.record.metrics["monitor"] == max(epochs)
    examples = [event.example for event in found.events if event.HasField("example")]
    assert {example.query for example in examples} == {pair.text for pair in QUERIES.pairs}
    assert ("validation loss is that of the queries" in found.log) == (rated is QUERIES)
    assert "nothing is measured" not in found.log


async def test_labelled_queries_get_prompts(database: Database, where: Workplace) -> None:
    labelled = [
        replace(pair, text="", label=f"{number % 2}") for number, pair in enumerate(QUERIES.pairs)
    ]
    sets = {**SETS, "queries": MemoryPairs(labelled, QUERIES.images)}
    asked = replace(SPEC, prompts=("a {label}", "{label}"), eval_dataset="eval")
    found = await fine_tune(database, replace(where, datasets=Sets(sets)), asked)
    examples = [event.example.query for event in found.events if event.HasField("example")]
    assert sorted(examples) == ["0", "1", "a 0", "a 1"]
    assert "it flatters" not in found.log


def script(monkeypatch: pytest.MonkeyPatch, *told: Mapping[str, float]) -> list[dict[str, Any]]:
    """Makes measurements say what they are told, one after the other; gives what was measured."""
    real, left, seen = Evaluator.evaluate, iter(told), []

    def evaluate(self: Evaluator, clip: Any, **how: Any) -> Evaluation:
        found, now = real(self, clip, **how), dict(next(left))
        seen.append(weights(clip))
        loss = now.pop("validation_loss", found.loss)
        return replace(found, loss=loss, metrics={**found.metrics, **now})

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    return seen


def mrr(value: float) -> dict[str, float]:
    """What would decide if nothing else was asked for."""
    return dict.fromkeys(MRR, value)


@pytest.mark.parametrize(
    ("monitor", "values", "rivals"),
    [
        ("validation_loss", (5.0, 3.0, 1.0, 2.0), (1.5, 0.5)),
        ("clip-text-to-clip-vision_mean_rank", (9.0, 4.0, 2.0, 3.0), (2.5, 1.0)),
        ("clip-vision-to-clip-text_hit_at_1", (0.1, 0.5, 0.75, 0.25), (0.5, 0.875)),
    ],
)
@pytest.mark.parametrize("better", [True, False])
async def test_what_is_asked_for_decides(
    database: Database,
    where: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    monitor: str,
    values: Sequence[float],
    rivals: tuple[float, float],
    better: bool,
) -> None:
    """Of the base and three epochs the second one is best, though not by the reciprocal rank."""
    rival = rivals[not better]
    told = [{monitor: v, **mrr(n / 8)} for n, v in enumerate(values, 1)]
    seen = script(monkeypatch, *told, {monitor: rival, **mrr(float(better))})
    asked = replace(
        SPEC,
        activation=ActivationRule.IF_BETTER,
        config=replace(CONFIG, max_steps=None, epochs=3),
        monitor=monitor,
    )
    desk = Desk(live="rival")
    found = await fine_tune(database, where, asked, desk)
    kept = weights(where.versions.saved[0])  # type: ignore[attr-defined]
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[2].items())
    assert any(not torch.equal(kept[name], tensor) for name, tensor in seen[3].items())
    assert found.record.metrics[monitor] == desk.metrics[monitor] == values[2]
    assert found.record.metrics["monitor"] == desk.metrics["monitor"] == 3 / 8
    assert found.record.activated == better
    how = f"activated: {monitor} {values[2]:.4f}, version rival had {rival:.4f}"
    if not better:
        how = f"staged: {monitor} {values[2]:.4f}, live version rival has {rival:.4f}"
    assert how in found.log


async def test_a_soup_is_made_by_what_is_asked_for(
    database: Database, where: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The base, three epochs, and two averages, of which the first alone is better.
    losses = (5.0, 3.0, 1.0, 2.0, 0.75, 0.8)
    seen = script(
        monkeypatch, *({"validation_loss": v, **mrr(n / 8)} for n, v in enumerate(losses, 1))
    )
    config = replace(CONFIG, max_steps=None, epochs=3)
    asked = replace(SPEC, soup=3, monitor="validation_loss", config=config)
    found = await fine_tune(database, where, asked)
    assert "averaged the weights of 2 epochs of 3" in found.log
    assert found.record.metrics["validation_loss"] == 0.75
    kept = weights(where.versions.saved[0])  # type: ignore[attr-defined]
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, seen[2][name].lerp(seen[3][name], 0.5))


async def test_the_loss_of_a_rival_is_measured_as_that_of_the_run(
    database: Database, where: Workplace
) -> None:
    """In batches of the same size: in small ones any model has a smaller loss."""
    still = replace(CONFIG, learning_rate=1e-30, batch_size=12, max_steps=1)
    asked = replace(
        SPEC,
        activation=ActivationRule.IF_BETTER,
        config=still,
        monitor="validation_loss",
        query_dataset="",
        eval_dataset="eval",
    )
    twin = Shelf({"base": tiny_clip(), "rival": tiny_clip()})
    small = replace(asked, config=replace(still, batch_size=3))
    for one in (asked, small):
        found = await fine_tune(database, replace(where, versions=twin), one, Desk(live="rival"))
        loss = found.record.metrics["validation_loss"]
        assert f"validation_loss {loss:.4f}, live version rival has {loss:.4f}" in found.log


def test_what_decides_survives_a_state_and_older_states_have_none() -> None:
    clip = tiny_clip()
    found = Evaluator(clip, QUERIES, monitor="validation_loss").evaluate(clip)
    assert found.score == -found.loss
    standing = Standing(before=found, best=found, best_weights="w", last=[("w", found.score)])
    stored = json.loads(json.dumps(standing.to_json()))
    assert Standing.from_json(stored) == standing
    del stored["best"]["monitor"]
    older = Standing.from_json(stored).best
    assert older is not None
    assert older.score == older.mean_reciprocal_rank == metrics_of(found)["monitor"]


class Noted(Watched):
    """Keeps what it logs."""

    def __init__(self, database: Database) -> None:
        self.lines: list[tuple[Level, str]] = []
        super().__init__(database)

    def log(self, message: str, level: Level = "INFO") -> None:
        self.lines.append((level, message))


def divided(
    database: Database, where: Workplace, sets: Mapping[str, MemoryPairs], asked: FineTuneSpec
) -> tuple[list[Pair], list[tuple[Level, str]]]:
    """The pairs to train on, and what was said."""
    job = Noted(database)
    with local_work(replace(where, datasets=Sets(sets)), job, asked) as work:
        assert isinstance(work, LocalWork)
        return list(work._training.pairs), job.lines


def test_negatives_that_are_measured_are_not_trained_on(
    database: Database, where: Workplace
) -> None:
    rated, asked = EVAL.pairs[0], QUERIES.pairs[0]
    rows = [
        replace(
            TRAIN.pairs[0],
            negative_texts=("wrong", rated.text, asked.text),
            negative_images=(rated.image_key, TRAIN.pairs[1].image_key),
        ),
        replace(TRAIN.pairs[1], negative_images=(asked.image_key,), negative_texts=(rated.text,)),
        *TRAIN.pairs[2:],
    ]
    sets = {**SETS, "train": MemoryPairs(rows, {**TRAIN.images, **EVAL.images, **QUERIES.images})}
    both = replace(SPEC, eval_dataset="eval")
    pairs, lines = divided(database, where, sets, both)
    assert pairs == [
        replace(
            TRAIN.pairs[0],
            negative_texts=("wrong",),
            negative_images=(TRAIN.pairs[1].image_key,),
        ),
        *TRAIN.pairs[1:],
    ]
    assert lines == [
        ("INFO", "left out 3 negatives of training pairs that are of the evaluation"),
        ("INFO", "left out 2 negatives of training pairs that are of the queries"),
    ]
    pairs, _ = divided(database, where, sets, replace(both, query_dataset=""))
    assert pairs[0].negative_texts == ("wrong", asked.text)
    assert pairs[1].negative_images == (asked.image_key,)
    # Nothing is held out: nothing is left out.
    alone = replace(SPEC, query_dataset="", index_dataset="")
    assert divided(database, where, sets, alone)[0] == rows


def test_images_and_texts_on_both_sides_are_told_of(database: Database, where: Workplace) -> None:
    shared = [
        *TRAIN.pairs[:3],
        replace(TRAIN.pairs[0], text="another name"),
        replace(EVAL.pairs[0], text=TRAIN.pairs[5].text),
        replace(EVAL.pairs[1], text="", label="unknown"),
    ]
    images = {**TRAIN.images, **EVAL.images}
    labelled = MemoryPairs(
        [*TRAIN.pairs, Pair(OLD.pairs[0].image_key, "", label="x")], {**TRAIN.images, **OLD.images}
    )
    sets = {**SETS, "train": labelled, "eval": MemoryPairs(shared, images)}
    pairs, lines = divided(database, where, sets, replace(SPEC, eval_dataset="eval"))
    assert lines == [
        ("WARNING", "3 images and 4 texts of the evaluation are trained on: it flatters")
    ]
    assert [pair.image_key for pair in pairs] == [pair.image_key for pair in labelled.pairs]
    # Texts alone, of queries alone.
    renamed = [replace(pair, text=TRAIN.pairs[0].text) for pair in QUERIES.pairs]
    sets = {**SETS, "queries": MemoryPairs(renamed, QUERIES.images)}
    _, lines = divided(database, where, sets, SPEC)
    assert ("WARNING", "1 texts of the queries are trained on: it flatters") in lines


def test_neither_what_is_searched_for_nor_what_is_held_out_is_replayed(
    database: Database, where: Workplace
) -> None:
    old = MemoryPairs(
        [
            *OLD.pairs,
            replace(QUERIES.pairs[0], text="as before"),
            replace(EVAL.pairs[0], text="as before"),
            replace(OLD.pairs[0], text=QUERIES.pairs[1].text),
            replace(OLD.pairs[1], negative_texts=(QUERIES.pairs[2].text,)),
        ],
        {**OLD.images, **QUERIES.images, **EVAL.images},
    )
    asked = replace(SPEC, eval_dataset="eval", replay_dataset="old")
    pairs, lines = divided(database, where, {**SETS, "old": old}, asked)
    assert ("INFO", "replaying 5 old pairs, without 3 of what is held out") in lines
    assert set(pairs) == {*TRAIN.pairs, *OLD.pairs}


async def test_no_image_that_is_measured_is_mined(database: Database, where: Workplace) -> None:
    offered = [*QUERIES.images.values(), *EVAL.images.values(), *INDEX.images.values()]
    mining = MiningConfig(collection="shop")
    asked = replace(SPEC, eval_dataset="eval", config=replace(CONFIG, max_steps=1, mining=mining))
    found = await fine_tune(database, where, asked, sample_images=lambda *_: offered)
    assert f"mining {len(INDEX.images)} images of shop" in found.log
