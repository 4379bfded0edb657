"""The suite finetune-quality: its tasks, how it goes on, and its figures."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import quality_runs
from benchmarks.figures import Figure, judged
from benchmarks.finetune_quality import QUICK_RUNS, figures_of, finetune_quality, mean_of
from benchmarks.quality_runs import Row, append_rows, methods_of, read_rows, recipe_of
from benchmarks.quality_tasks import TASKS, line_art, make_task
from benchmarks.settings import Settings


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
        recipe=recipe_of(task, method, epochs=1),
    )


@pytest.mark.parametrize("name", TASKS)
def test_what_is_asked_for_was_not_seen(name: str) -> None:
    task = make_task(name, 1, concepts=40)
    seen = {pair.image_key for pair in task.train.pairs}
    assert not seen & {pair.image_key for pair in task.queries.pairs}
    assert {pair.image_key for pair in task.queries.pairs} <= {
        p.image_key for p in task.index.pairs
    }
    assert len(task.index.pairs) == len(task.retained.pairs) == 40
    assert len(task.queries.pairs) == 12
    assert task.train.pairs == make_task(name, 1, concepts=40).train.pairs
    assert task.train.pairs != make_task(name, 2, concepts=40).train.pairs


def test_line_art_has_no_colour() -> None:
    import io

    from PIL import Image

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


def test_means_have_students_interval() -> None:
    mean, interval = mean_of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    half = 2.776 * (2.5 / 5) ** 0.5
    assert interval == pytest.approx((3 - half, 3 + half))
    assert mean_of([4.0]) == (4.0, None)


def test_figures_are_of_every_seed() -> None:
    rows = [
        row(task, method, seed, mrr=(0.1 if method == "base" else 0.4) + 0.01 * seed)
        for task in TASKS
        for method in (*methods_of(task), "wise_ft")
        for seed in range(5)
    ]
    figures = {figure.name: judged(figure, "cpu") for figure in figures_of(rows)}
    german = figures["german.mrr_ratio.full"]
    assert german.value == pytest.approx(
        sum((0.4 + 0.01 * s) / (0.1 + 0.01 * s) for s in range(5)) / 5
    )
    assert german.interval is not None
    assert german.interval[0] < german.value < german.interval[1]
    assert (german.target, german.passed) == (3.0, True)
    least = figures["retained.hit10_loss.few.least"]
    assert (least.value, least.target, least.passed) == (0.0, 2.0, True)
    assert figures["black.mrr_gain_over.ema_off"].value == 0
    assert "german.mrr_gain_over.positives_off" in figures
    assert "few.mrr_gain_over.positives_off" not in figures
    # A seed that is not complete does not count.
    part = [known for known in rows if known.key != ("german", "lit", 4)]
    fewer = {figure.name: figure for figure in figures_of(part)}
    assert fewer["german.mrr_ratio.full"].value > german.value
    assert fewer["black.mrr_ratio.full"] == replace(
        figures["black.mrr_ratio.full"], target=None, passed=None
    )
    assert isinstance(german, Figure)


def test_a_stopped_suite_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of tiny tasks, of which one run is left: that one is really done."""
    path = tmp_path / QUICK_RUNS
    for seed in (0, 1):
        for task in TASKS:
            for method in (*methods_of(task), "wise_ft"):
                done = row(task, method, seed)
                if (task, method, seed) in [("few", "full", 1), ("few", "wise_ft", 1)]:
                    done = replace(done, recipe="another")  # of other weights
                append_rows(path, [done])
    settings = Settings(quick=True, output=tmp_path)
    names = [figure.name for figure in finetune_quality(settings)]
    assert len(set(names)) == len(names)
    rows = read_rows(path)
    assert len(rows) == 2 * sum(len(methods_of(task)) + 1 for task in TASKS) + 2
    done = {known.method: known for known in rows[-2:]}
    assert done.keys() == {"full", "wise_ft"}
    assert 0 < done["full"].mrr <= 1

    def trained(*_: object) -> None:
        raise AssertionError("nothing is left to be done")

    monkeypatch.setattr(quality_runs, "_train", trained)
    assert [figure.name for figure in finetune_quality(settings)] == names
    assert len(read_rows(path)) == len(rows)
