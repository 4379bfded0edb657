"""How much better builtin:mini gets at what it was tuned for, and what it forgets.

Three tasks, five seeds, each method, and the method "full" without each thing that is on by
default. Every run is a line in `finetune-quality.runs.jsonl` in the output folder; what is there of
the same recipe and weights is not done again, so a stopped suite goes on where it was. Figures are
means over the seeds with 95 % intervals by Student's t; those of an ablation are of differences by
seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.quality_runs import (
    ABLATIONS,
    METHODS,
    Measured,
    Row,
    append_rows,
    methods_of,
    read_rows,
    recipe_of,
    rows_of,
)
from benchmarks.quality_tasks import TASKS, make_task
from benchmarks.settings import Settings

SEEDS = 5
RUNS, QUICK_RUNS = "finetune-quality.runs.jsonl", "finetune-quality.quick.jsonl"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % point of Student's t for so many values (one degree of freedom less)."""
_QUICK_CONCEPTS, _QUICK_SEEDS = 60, 2


def finetune_quality(settings: Settings) -> Iterator[Figure]:
    """Runs what has not been run, then gives the figures of all of it.

    Ctrl-C ends the running and gives those of the seeds that are complete.
    """
    path = settings.output / (QUICK_RUNS if settings.quick else RUNS)
    epochs = 1 if settings.quick else 0
    seeds = range(_QUICK_SEEDS if settings.quick else SEEDS)
    try:
        # Seed by seed, so that what is stopped early is a smaller measurement of everything.
        for seed in seeds:
            _run_seed(path, seed, epochs, _QUICK_CONCEPTS if settings.quick else 0)
    except KeyboardInterrupt:
        print("stopped; run it again to go on", flush=True)
    yield from figures_of([row for row in _current(path, epochs) if row.seed in seeds])


def _run_seed(path: Path, seed: int, epochs: int, concepts: int) -> None:
    known = {row.key for row in _current(path, epochs)}
    for name in TASKS:
        missing = [method for method in methods_of(name) if (name, method, seed) not in known]
        if not missing:
            continue
        measured = Measured(make_task(name, seed, concepts), epochs)
        for method in missing:
            rows = list(rows_of(measured, method, seed))
            append_rows(path, rows)
            for row in rows:
                print(
                    f"{name} {row.method} {seed}: mRR {row.mrr:.3f}, hit@10 {row.hit10:.3f}, "
                    f"retained {row.retained_hit10:.3f}, {row.seconds:.0f} s",
                    flush=True,
                )


def _current(path: Path, epochs: int) -> list[Row]:
    """Rows of these weights and recipes; others were made before something changed."""
    recipes = functools.cache(lambda task, method: recipe_of(task, method, epochs))
    return [row for row in read_rows(path) if row.recipe == recipes(row.task, row.method)]


def figures_of(rows: Sequence[Row]) -> Iterator[Figure]:
    """Ratios to the base, points lost on what must be retained, and gains over ablations."""
    table = {row.key: row for row in rows}
    for task in TASKS:
        methods = (*methods_of(task), "wise_ft")
        seeds = [
            seed
            for seed in sorted({row.seed for row in rows})
            if all((task, method, seed) in table for method in methods)
        ]
        if not seeds:
            continue
        column = {method: [table[task, method, seed] for seed in seeds] for method in methods}
        base, full = column["base"], column["full"]
        lost: dict[str, Figure] = {}
        for method in (*METHODS, "wise_ft"):
            tuned = column[method]
            ratios = [one.mrr / was.mrr for one, was in zip(tuned, base, strict=True)]
            yield _figure(f"{task}.mrr_ratio.{method}", "x", ratios)
            losses = [
                100 * (was.retained_hit10 - one.retained_hit10)
                for one, was in zip(tuned, base, strict=True)
            ]
            lost[method] = _figure(f"retained.hit10_loss.{task}.{method}", "points", losses)
            yield lost[method]
        least = min(lost["full"], lost["wise_ft"], key=lambda figure: figure.value)
        yield replace(least, name=f"retained.hit10_loss.{task}.least")
        for ablation in [method for method in column if method in ABLATIONS]:
            gains = [one.mrr - two.mrr for one, two in zip(full, column[ablation], strict=True)]
            yield _figure(f"{task}.mrr_gain_over.{ablation}", "mRR", gains)


def _figure(name: str, unit: str, values: Sequence[float]) -> Figure:
    mean, interval = mean_of(values)
    return Figure(name=name, value=mean, unit=unit, interval=interval)


def mean_of(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Mean and its 95 % interval by Student's t; of one value there is none."""
    count = len(values)
    mean = sum(values) / count
    if count not in STUDENT:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = STUDENT[count] * math.sqrt(variance / count)
    return mean, (mean - half, mean + half)
