"""The retrieval metrics of a run as rows: before and after, both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DIRECTIONS = {
    "clip-text-to-clip-vision": "text → image",
    "clip-vision-to-clip-text": "image → text",
}
MONITOR, VALIDATION_LOSS = "monitor", "validation_loss"
LEADING = (
    *("reciprocal_rank", "hit_at_1", "hit_at_5", "hit_at_10", "hit_at_k"),
    *("average_precision", "average_precision_at_k"),
    *("ndcg_at_k", "dcg_at_k", "precision_at_k", "recall_at_k", "f1_score_at_k", "r_precision"),
    *("mean_rank", "median_rank"),
)
"""Their order; others follow by name."""
LOWER_IS_BETTER = {"mean_rank", "median_rank", VALIDATION_LOSS}
COUNTS = {"queries"}
"""Neither better nor worse."""
SAME = 5e-5
"""A change that would be shown as none."""


@dataclass(frozen=True)
class Cell:
    """One metric of one direction; `trend` is "better", "worse" or "" for neither."""

    before: str
    after: str
    change: str
    trend: str


@dataclass(frozen=True)
class Row:
    """One metric; a cell is None where it was not measured."""

    name: str
    cells: tuple[Cell | None, ...]


def metric_rows(before: Mapping[str, float], after: Mapping[str, float]) -> list[Row]:
    """One row a metric with a cell a direction; what has no direction is not among them."""
    names = {
        name.removeprefix(f"{direction}_")
        for name in (*before, *after)
        for direction in DIRECTIONS
        if name.startswith(f"{direction}_")
    }
    ordered = [name for name in LEADING if name in names]
    ordered += sorted(names - {*LEADING, *COUNTS}) + sorted(names & COUNTS)
    return [
        Row(label_of(name), tuple(_cell(name, f"{d}_{name}", before, after) for d in DIRECTIONS))
        for name in ordered
    ]


def single_row(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> Cell | None:
    """A metric that has no direction."""
    return _cell(name, name, before, after)


def label_of(name: str) -> str:
    """As people write it: "precision@k", "mean rank"."""
    return name.replace("_at_", "@").replace("_", " ")


def _cell(
    name: str, key: str, before: Mapping[str, float], after: Mapping[str, float]
) -> Cell | None:
    old, new = before.get(key), after.get(key)
    if old is None and new is None:
        return None
    if old is None or new is None or name in COUNTS:
        return Cell(_number(name, old), _number(name, new), "", "")
    change = new - old
    if abs(change) < SAME:
        return Cell(_number(name, old), _number(name, new), "±0", "")
    better = (change < 0) == (name in LOWER_IS_BETTER)
    sign = "+" if change > 0 else "−"
    return Cell(
        _number(name, old),
        _number(name, new),
        f"{sign}{_number(name, abs(change))}",
        "better" if better else "worse",
    )


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in COUNTS:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if name in ("mean_rank", "median_rank") else f"{value:.4f}"
