"""How much better builtin:mini gets at what it was tuned for, and what it forgets.

Five tasks, five seeds, each method, what is on by default left out and what is off put in. Every
model is a line in `finetune-quality.runs.jsonl` in the output folder; what is there of the same
recipe, pairs and weights is not made again, so a stopped suite goes on where it was, and `--runs`
does a part of it. Figures are means over the seeds with 95 % intervals by Student's t; ratios,
losses and gains are taken seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.figures import Figure
from benchmarks.quality_plan import Plan, rows_of
from benchmarks.quality_recipes import ABLATIONS, HALF
from benchmarks.quality_runs import BASE, Row
from benchmarks.quality_tasks import TASKS
from benchmarks.settings import Settings

SEEDS = 5
RUNS, QUICK_RUNS = "finetune-quality.runs.jsonl", "finetune-quality.quick.jsonl"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % point of Student's t for so many values (one degree of freedom less)."""
LEAST_OF = (f"full{HALF}", f"lora{HALF}", f"lit{HALF}", "default")
"""One of these may cost two points of what is retained at most, in each task that has a default."""
STYLE = "black_alone"
"""The task that asks for a new style by the names by which `retained` asks for one that the base
was trained on: what is reached there says what a style reaches that was shown whole."""
_QUICK_CONCEPTS, _QUICK_SEEDS = 60, 2


def finetune_quality(settings: Settings) -> Iterator[Figure]:
    """Runs what has not been run, then gives the figures of all of it.

    Ctrl-C ends the running and gives those of the seeds that are complete.
    """
    plan = plan_of(settings)
    try:
        for line in plan.carry_out(settings.runs):
            print(line, flush=True)
    except KeyboardInterrupt:
        print("stopped; run it again to go on", flush=True)
    yield from figures_of(plan.rows())


def plan_of(settings: Settings) -> Plan:
    """All of the suite, or the little that shows that it works."""
    if settings.quick:
        path = settings.output / QUICK_RUNS
        return Plan(path, range(_QUICK_SEEDS), epochs=1, concepts=_QUICK_CONCEPTS)
    return Plan(settings.output / RUNS, range(SEEDS))


def figures_of(rows: Sequence[Row]) -> Iterator[Figure]:
    """What each model reached, ratios to the base, points lost on what must be retained, and gains
    of what is on by default; of each task by the seeds of which every row is there."""
    table = {row.key: row for row in rows}
    for task in TASKS:
        names = rows_of(task)
        seeds = [
            seed
            for seed in sorted({row.seed for row in rows})
            if all((task, name, seed) in table for name in names)
        ]
        if seeds:
            columns = {name: [table[task, name, seed] for seed in seeds] for name in names}
            yield from _figures_of_task(task, columns)


def _figures_of_task(task: str, columns: dict[str, list[Row]]) -> Iterator[Figure]:
    base = columns[BASE]
    yield _figure(f"{task}.mrr.{BASE}", "mRR", [row.mrr for row in base])
    yield _figure(f"{task}.hit10.{BASE}", "share", [row.hit10 for row in base])
    yield _figure(f"retained.hit10.{task}.{BASE}", "share", [row.retained_hit10 for row in base])
    yield _figure(f"retained.mrr.{task}.{BASE}", "mRR", [row.retained_mrr for row in base])
    if task == STYLE:
        known = [row.retained_mrr / row.mrr for row in base]
        yield _figure(f"{task}.mrr_ratio.known_style", "x", known)
    lost: dict[str, Figure] = {}
    for name, rows in columns.items():
        if name == BASE or name in ABLATIONS[task]:
            continue
        pairs = list(zip(rows, base, strict=True))
        yield _figure(f"{task}.mrr.{name}", "mRR", [row.mrr for row in rows])
        yield _figure(f"{task}.hit10.{name}", "share", [row.hit10 for row in rows])
        ratios = [one.mrr / was.mrr for one, was in pairs]
        yield _figure(f"{task}.mrr_ratio.{name}", "x", ratios)
        losses = [100 * (was.retained_hit10 - one.retained_hit10) for one, was in pairs]
        lost[name] = _figure(f"retained.hit10_loss.{task}.{name}", "points", losses)
        yield lost[name]
    if "default" in lost:
        least = min((lost[name] for name in LEAST_OF), key=lambda figure: figure.value)
        yield replace(least, name=f"retained.hit10_loss.{task}.least")
    for name, recipe in ABLATIONS[task].items():
        pairs = list(zip(columns[recipe.instead_of], columns[name], strict=True))
        gains = [with_it.mrr - without.mrr for with_it, without in pairs]
        yield _figure(f"{task}.mrr_gain_over.{name}", "mRR", gains)
        kept = [with_it.retained_hit10 - without.retained_hit10 for with_it, without in pairs]
        yield _figure(f"{task}.retained_hit10_gain_over.{name}", "share", kept)


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
