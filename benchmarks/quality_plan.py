"""Which runs a measurement of fine-tuning consists of, which are done, and doing the others."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality_recipes import METHODS, rows_made_by, runs_of
from benchmarks.quality_runs import BASE, Measured, Row, append_rows, fingerprint, read_rows
from benchmarks.quality_tasks import TASKS, Task, make_task


@dataclass(frozen=True, slots=True)
class Run:
    """One model to be made, or the base to be measured."""

    seed: int
    task: str
    name: str

    @property
    def rows(self) -> list[tuple[str, str, int]]:
        """Keys of the rows that it gives."""
        names = (BASE,) if self.name == BASE else rows_made_by(self.task, self.name)
        return [(self.task, name, self.seed) for name in names]


def rows_of(task: str) -> list[str]:
    """Names of all rows of a task and a seed, the base's first."""
    return [BASE, *(row for name in runs_of(task) for row in rows_made_by(task, name))]


class Plan:
    """All runs of some seeds; what is done is read from a file of rows and added to it.

    Args:
        epochs: Of each run; 0: as its recipe states.
        concepts: Of each task; 0: all.
    """

    def __init__(self, path: Path, seeds: Sequence[int], *, epochs: int = 0, concepts: int = 0):
        self._path, self._seeds, self._epochs = path, seeds, epochs
        self._task = functools.cache(lambda name, seed: make_task(name, seed, concepts))

    def rows(self) -> list[Row]:
        """Those of these weights, pairs and recipes; others were made before something changed."""
        return [row for row in read_rows(self._path) if row.seed in self._seeds and self._fits(row)]

    def missing(self) -> list[Run]:
        """Runs that are not done, seed by seed: what is stopped early is a smaller measurement of
        everything. Methods come before what is measured against them."""
        known = {row.key for row in self.rows()}
        runs = [
            Run(seed, task, name)
            for seed in self._seeds
            for task in TASKS
            for name in (BASE, *runs_of(task))
        ]
        return [run for run in runs if not known.issuperset(run.rows)]

    def carry_out(self, most: int = 0) -> Iterator[str]:
        """Does what is missing, at most so many runs (0: all); yields a line for each."""
        missing = self.missing()
        measured: Measured | None = None
        for done, run in enumerate(missing[: most or None], 1):
            task = self._task(run.task, run.seed)
            if measured is None or measured.task is not task:
                measured = Measured(task, self._epochs)
            made = list(measured.rows(run.name, run.seed))
            append_rows(self._path, made)
            left = self._seconds_of(missing[done:])
            yield (
                f"{run.task} {run.name} {run.seed}: {'; '.join(map(_told, made))}. "
                f"{len(missing) - done} runs left, about {left / 60:.0f} min"
            )

    def _fits(self, row: Row) -> bool:
        if row.task not in METHODS or row.method not in rows_of(row.task):
            return False
        task: Task = self._task(row.task, row.seed)
        return row.recipe == fingerprint(task, row.method, self._epochs)

    def _seconds_of(self, runs: Sequence[Run]) -> float:
        """What they will take: as the same of other seeds did, else as the mean of all."""
        took: dict[tuple[str, str], list[float]] = {}
        rows = self.rows()
        for row in rows:
            took.setdefault((row.task, row.method), []).append(row.seconds)
        usual = {key: sum(seconds) / len(seconds) for key, seconds in took.items()}
        mean = sum(row.seconds for row in rows) / len(rows)
        return sum(usual.get((task, name), mean) for run in runs for task, name, _ in run.rows)


def _told(row: Row) -> str:
    return (
        f"mRR {row.mrr:.3f}, hit@10 {row.hit10:.3f}, retained {row.retained_hit10:.3f}, "
        f"{row.seconds:.0f} s"
    )
