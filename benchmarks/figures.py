"""Figures: what a suite measured, against what was aimed at, as JSON and as a table."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.targets import Target, target_of

COLUMNS = (
    *("figure", "value", "unit", "target", "", "baseline", "min cosine"),
    *("gen", "server", "engine", "95 %"),
)


_OF_A_PART = ("day", "models", "contents")
"""What of the record of the machine differs between the parts of a suite."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number. The JSON of a suite is a list of these, after one of the machine."""

    name: str
    value: float
    unit: str
    target: float | None = None
    """To be reached from below (ratios of speed) or not exceeded (latency, cold start). One that
    depends on the run comes with the figure and is not to be exceeded."""
    passed: bool | None = None
    """Whether the target is met; None without one."""
    baseline: float | None = None
    """What `value` is relative to: items a second of the baseline, or seconds."""
    min_cosine: float | None = None
    """Smallest cosine between an answer of these segments and plain open_clip in fp32."""
    generator_cpu: float | None = None
    """Cores that the load generator kept busy."""
    server_cpu: float | None = None
    """Cores that the server kept busy."""
    engine: str | None = None
    """What ran the tower, e.g. "torch/bf16"."""
    interval: tuple[float, float] | None = None
    """95 % interval over repetitions, or windows."""


def judged(figure: Figure, device: str) -> Figure:
    """The figure with its target for a device by name, if there is one."""
    target = target_of(figure.name, device)
    if target is None:
        return figure
    stated = {**asdict(figure), "target": target.value, "passed": target.met_by(figure.value)}
    return Figure(**stated)


def write_figures(path: Path, machine: dict[str, Any], figures: Sequence[Figure]) -> None:
    """Writes one list: a record named "machine", whose value tells what and when, then figures."""
    empty = dict.fromkeys(asdict(Figure(name="", value=0.0, unit="")))
    records = [{**empty, "name": "machine", "unit": "", "value": machine}]
    records += [asdict(figure) for figure in figures]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def added_to(
    path: Path, machine: dict[str, Any], figures: Sequence[Figure]
) -> tuple[dict[str, Any], list[Figure]]:
    """Figures of a part of a suite, with the others that a file holds of the same machine.

    Returns:
        The record of the machine, which tells of each part when it was measured and of what,
        and all figures in the order of the file. What another machine, other versions or other
        settings gave is not kept.
    """
    part = {name: machine[name] for name in _OF_A_PART}
    if not path.exists():
        return machine, list(figures)
    (first, *records) = json.loads(path.read_text(encoding="utf-8"))
    whole = first["value"]
    if any(whole.get(name) != told for name, told in machine.items() if name not in _OF_A_PART):
        return machine, list(figures)
    new = {figure.name: figure for figure in figures}
    part["figures"] = sorted(new)
    kept = [
        new.pop(record["name"]) if record["name"] in new else Figure(**record) for record in records
    ]
    return {**whole, "parts": [*whole.get("parts", []), part]}, [*kept, *new.values()]


def table(figures: Iterable[Figure], device: str) -> str:
    """Rows for a terminal, aligned; no line ends in spaces."""
    rows = [COLUMNS, *(_cells(figure, target_of(figure.name, device)) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    left = {0, 2, 4, 9, 10}
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cells(figure: Figure, target: Target | None) -> tuple[str, ...]:
    return (
        figure.name,
        _number(figure.value),
        figure.unit,
        _target(figure, target),
        {None: "", True: "met", False: "MISSED"}[figure.passed],
        _number(figure.baseline),
        "" if figure.min_cosine is None else f"{figure.min_cosine:.6f}",
        "" if figure.generator_cpu is None else f"{figure.generator_cpu:.2f}",
        "" if figure.server_cpu is None else f"{figure.server_cpu:.2f}",
        figure.engine or "",
        "" if figure.interval is None else " to ".join(map(_number, figure.interval)),
    )


def _target(figure: Figure, target: Target | None) -> str:
    """A figure that brings a target of its own run is not to exceed it."""
    if target is not None:
        return f"{target.sign} {_number(target.value)}"
    return "" if figure.target is None else f"≤ {_number(figure.target)}"


def _number(value: float | None) -> str:
    """Three digits that count, or whole above a hundred."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
