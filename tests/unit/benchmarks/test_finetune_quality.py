"""The suite finetune-quality: its tasks, how it goes on, and its figures."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import quality_runs
from benchmarks.figures import judged
from benchmarks.finetune_quality import (
    QUICK_RUNS,
    figures_of,
    finetune_quality,
    mean_of,
    plan_of,
)
from benchmarks.quality_plan import Run, rows_of
from benchmarks.quality_recipes import (
    ABLATIONS,
    BOUNDS,
    DEFAULT,
    HALF,
    METHODS,
    Recipe,
    recipes_of,
    runs_of,
)
from benchmarks.quality_runs import BASE, Row, append_rows, fingerprint, load_mini, read_rows
from benchmarks.quality_tasks import FEW, TASKS, line_art, make_task
from benchmarks.settings import Settings
from hotclip_server.training.clip import Clip

CONCEPTS = 60
"""Of the quick suite."""


def row(task: str, method: str, seed: int, mrr: float = 0.2, retained: float = 0.9) -> Row:
    return Row(
        task=task,
        method=method,
        seed=seed,
        mrr=mrr,
        hit10=0.5,
        retained_mrr=0.8,
        retained_hit10=retained,
        seconds=1.0,
        recipe=fingerprint(make_task(task, seed, CONCEPTS), method, epochs=1),
    )


@pytest.mark.parametrize("name", TASKS)
def test_what_is_asked_for_was_not_seen(name: str) -> None:
    task = make_task(name, 1, concepts=40)
    seen = {pair.image_key for part in (task.train, task.chosen_by) for pair in part.pairs}
    assert not seen & {pair.image_key for pair in task.queries.pairs}
    assert set(task.queries.pairs) <= set(task.index.pairs)
    assert set(task.retained.pairs) <= set(task.old_index.pairs)
    assert not set(task.retained.pairs) & set(task.old.pairs)
    searched = 12 if name == "labels" else 40  # those that were seen have the labels too
    assert (len(task.index.pairs), len(task.old_index.pairs)) == (searched, 40)
    assert (len(task.queries.pairs), len(task.retained.pairs), len(task.old.pairs)) == (12, 12, 28)
    # The epoch is chosen by drawings of the new style that are trained on in no other way.
    assert len(task.chosen_by.pairs) == 3
    assert not set(task.chosen_by.pairs) & set(task.train.pairs)
    assert {p.image_key.split("/")[0] for p in task.chosen_by.pairs} == {
        p.image_key.split("/")[0] for p in task.queries.pairs
    }
    assert task == make_task(name, 1, concepts=40)
    assert task.train != make_task(name, 2, concepts=40).train


def test_german_names_are_trained_on_with_another_style() -> None:
    task = make_task("german", 0)
    names = {pair.text for pair in task.train.pairs}
    for part in (task.queries, task.chosen_by):
        assert names >= {pair.text for pair in part.pairs}
    few = make_task("few", 0)
    assert len(few.train.pairs) + len(few.chosen_by.pairs) == FEW


def test_a_drawing_has_a_name_and_a_label_that_others_have() -> None:
    task = make_task("labels", 0)
    texts = Counter(pair.text for pair in task.train.pairs)
    labels = Counter(pair.label for pair in task.train.pairs)
    assert min(labels.values()) >= 2
    assert all(pair.text == pair.label for pair in task.queries.pairs)
    captions: dict[str, set[str]] = {}
    for pair in task.train.pairs:
        captions.setdefault(pair.image_key, set()).add(pair.text)
    assert all(len(both) <= 2 for both in captions.values())
    assert sum(len(both) == 2 for both in captions.values()) > 0.95 * len(captions)
    assert 80 < len(labels) < 100 < texts["country flag"]


def test_line_art_has_no_colour() -> None:
    with Image.open(io.BytesIO(line_art("1F431"))) as image:
        red, green, blue = image.convert("RGB").split()
        assert red.tobytes() == green.tobytes() == blue.tobytes()
        assert 0.02 < sum(value < 128 for value in red.tobytes()) / 64**2 < 0.4


def test_rows_survive_a_stop(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_rows(path, [row("german", "full", 0)])
    with path.open("a") as file:
        file.write('{"task": "ger')  # the process ended here
    assert read_rows(path) == [row("german", "full", 0)]
    append_rows(path, [row("german", "lora", 0)])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        asdict(row("german", method, 0)) for method in ("full", "lora")
    ]


def test_a_row_is_of_its_pairs_weights_and_recipe() -> None:
    task = make_task("german", 0, concepts=40)
    known = {name: fingerprint(task, name) for name in rows_of("german")}
    for name in METHODS["german"]:
        assert known[name] == known[name + HALF]  # one run gives both
    assert len(set(known.values())) == 1 + len(recipes_of("german"))
    fewer = replace(task, train=replace(task.train, pairs=task.train.pairs[1:]))
    assert fingerprint(fewer, "lit") != known["lit"]
    assert fingerprint(task, "lit", epochs=1) != known["lit"]
    for methods in (METHODS, BOUNDS, ABLATIONS):
        assert set(methods) == set(TASKS)
    for name in TASKS:
        known_runs = {**METHODS[name], **BOUNDS[name]}
        for recipe in ABLATIONS[name].values():
            replaced = known_runs[recipe.instead_of]
            if recipe.last:  # nothing else may differ: one run gives both
                assert recipe == replace(replaced, last=True, instead_of=recipe.instead_of)
            else:  # a default that changed may not be compared with itself
                assert recipe.config != replaced.config


def test_means_have_students_interval() -> None:
    mean, interval = mean_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    half = 2.776 * (2.5 / 5) ** 0.5
    assert interval == pytest.approx((3 - half, 3 + half))
    assert mean_of([4.0]) == (4.0, None)


def test_figures_are_of_every_seed() -> None:
    rows = [
        row(task, method, seed, mrr=(0.1 if method == BASE else 0.4) + 0.01 * seed)
        for task in TASKS
        for method in rows_of(task)
        for seed in range(5)
    ]
    figures = {figure.name: judged(figure, "cpu") for figure in figures_of(rows)}
    assert len(figures) == len(list(figures_of(rows)))
    german = figures["german.mrr_ratio.replay"]
    assert german.value == pytest.approx(
        sum((0.4 + 0.01 * s) / (0.1 + 0.01 * s) for s in range(5)) / 5
    )
    assert german.interval is not None
    assert german.interval[0] < german.value < german.interval[1]
    assert (german.target, german.passed) == (3.0, True)
    assert figures["german.mrr.base"].value == pytest.approx(0.12)
    known = [0.8 / (0.1 + 0.01 * s) for s in range(5)]  # `retained_mrr` over that of the base
    assert figures["black_alone.mrr_ratio.known_style"].value == pytest.approx(sum(known) / 5)
    assert figures["few.mrr_ratio.long"].value == pytest.approx(german.value)
    least = figures["retained.hit10_loss.few.least"]
    assert (least.value, least.target, least.passed) == (0.0, 2.0, True)
    counted = ("full_half", "lora_half", "lit_half", "default")
    for name in ("full", "replay_half", *counted):  # the only one that forgets nothing
        kept = [replace(r, retained_hit10=0.9 if r.method in (BASE, name) else 0.8) for r in rows]
        losses = {figure.name: figure.value for figure in figures_of(kept)}
        expected = 0 if name in counted else 10
        assert losses["retained.hit10_loss.german.least"] == pytest.approx(expected)
    assert figures["few.mrr_gain_over.ema_on"].value == 0
    assert figures["labels.mrr_gain_over.positives_share"].value == 0
    forgets = [replace(r, retained_hit10=0.8) if r.method == "auto_full" else r for r in rows]
    gains = {figure.name: figure.value for figure in figures_of(forgets)}
    assert gains["few.retained_hit10_gain_over.auto_full"] == pytest.approx(0.1)
    assert gains["few.mrr_gain_over.auto_full"] == 0
    worse = [replace(r, mrr=0.2) if r.method == "long_last_epoch" else r for r in rows]
    gains = {figure.name: figure.value for figure in figures_of(worse)}
    assert gains["few.mrr_gain_over.long_last_epoch"] == pytest.approx(0.22)
    assert gains["few.mrr_gain_over.last_epoch"] == 0
    # A seed that is not complete does not count.
    part = [known for known in rows if known.key != ("german", "lit", 4)]
    fewer = {figure.name: figure for figure in figures_of(part)}
    assert fewer["german.mrr_ratio.replay"].value > german.value
    assert judged(fewer["black.mrr_ratio.replay"], "cpu") == figures["black.mrr_ratio.replay"]


@pytest.mark.parametrize("kind", ["black", "black_alone"])
def test_a_bound_alone_trains_on_what_is_asked_for(kind: str) -> None:
    task = make_task(kind, 0, CONCEPTS)
    asked = {pair.image_key for pair in task.queries.pairs}
    for name in runs_of(kind):
        pairs = quality_runs._training(task, recipes_of(kind)[name]).pairs
        trained = {pair.image_key for pair in pairs}
        assert trained & asked == (asked if name == "oracle" else set())


def test_a_bound_is_of_what_it_trains_on() -> None:
    task = make_task("black_alone", 0, CONCEPTS)
    assert fingerprint(task, "oracle") != fingerprint(replace(task, queries=task.old), "oracle")


def test_the_best_epoch_and_the_last_are_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def epochs(clip: Clip, *_: object) -> Iterator[float]:
        for epoch, score in enumerate((0.2, 0.5, 0.3), 1):
            clip.model.logit_scale.data.fill_(epoch)
            yield score

    monkeypatch.setattr(quality_runs, "_epochs", epochs)
    clip, task = load_mini(), make_task("few", 0, CONCEPTS)
    best, last = quality_runs._train(clip, task, Recipe(config=DEFAULT))
    assert (float(best["logit_scale"]), float(last["logit_scale"])) == (2.0, 3.0)
    shown = []

    def measured(_: object, clip: Clip, method: str, *__: object) -> None:
        shown.append((method, float(clip.model.logit_scale.detach())))

    monkeypatch.setattr(quality_runs.Measured, "_row", measured)
    list(quality_runs.Measured(task).rows("default", 0))
    half = (float(load_mini().model.logit_scale.detach()) + 2) / 2
    names, scales = zip(*shown, strict=True)
    assert names == ("default", "default_half", "last_epoch")
    assert scales == pytest.approx((2.0, half, 3.0))


def test_a_stopped_suite_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of tiny tasks, of which three runs are left: those are really done."""
    path = tmp_path / QUICK_RUNS
    settings = Settings(quick=True, output=tmp_path)
    left = [Run(1, "german", "replay"), Run(1, "few", BASE), Run(1, "few", "full")]
    undone = {key for run in left for key in run.rows}
    for seed in (0, 1):
        for task in TASKS:
            for method in rows_of(task):
                done = row(task, method, seed)
                if done.key in undone:
                    done = replace(done, recipe="another")  # of other weights
                append_rows(path, [done])
    assert plan_of(settings).missing() == left
    before = len(read_rows(path))
    # A part of it, then the rest.
    (line,) = plan_of(settings).carry_out(1)
    assert "german replay 1: mRR" in line
    assert "2 runs left, about 0 min" in line
    assert plan_of(settings).missing() == left[1:]
    names = [figure.name for figure in finetune_quality(settings)]
    assert len(set(names)) == len(names)
    made = read_rows(path)[before:]
    assert {known.key for known in made} == undone
    assert all(0 < known.mrr <= 1 for known in made)
    # Weights half-way are others than the base's and the tuned ones.
    few = {known.method: known for known in made if known.task == "few"}
    assert len({few[name].mrr for name in (BASE, "full", f"full{HALF}")}) > 1

    def trained(*_: object) -> None:
        raise AssertionError("nothing is left to be done")

    monkeypatch.setattr(quality_runs, "_train", trained)
    assert [figure.name for figure in finetune_quality(settings)] == names
    assert len(read_rows(path)) == before + len(made)
