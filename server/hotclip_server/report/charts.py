"""Line charts as geometry, which `templates/chart.html` draws as inline SVG.

No script, no font, no file beside the page. Colours come from the page's style, so that a chart
fits a light and a dark one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 12, 38
TICKS = 5
MOST_DOTS = 40
"""A line of more points is drawn without dots."""
SMALLEST = 1e-30
"""What is smaller counts as 0."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A place on an axis, in units of the drawing, and what stands there."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A measured point; `label` is shown when the pointer rests on it."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Path:
    """A line of a chart; `colour` counts from 0, `path` is for a polyline."""

    name: str
    colour: int
    path: str
    dots: tuple[Dot, ...]
    faint: bool


@dataclass(frozen=True)
class Chart:
    """What the template draws."""

    title: str
    x_label: str
    paths: tuple[Path, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str,
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
    smooth: Sequence[str] = (),
) -> Chart | None:
    """A chart of the lines that have finite points; None if there is none.

    Args:
        lines: Points by name, in the order of x.
        marks: Labelled moments on the x axis.
        from_zero: Whether the y axis begins at 0 even if nothing comes near it.
        smooth: Lines that are noisy: drawn faint, with their moving average.
    """
    finite = {name: _finite(points) for name, points in lines.items()}
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return None
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    x_low, x_high = min(xs), max(xs)
    x_high = x_high if x_high > x_low else x_low + 1
    y_ticks = nice_ticks(min(0.0, *ys) if from_zero else min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    def path(name: str, colour: int, points: Points, *, faint: bool = False) -> Path:
        shown = () if faint or len(points) > MOST_DOTS else points
        return Path(
            name,
            colour,
            " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points),
            tuple(
                Dot(across(x), down(y), f"{name}: {y:.4g} at {x_label} {x:.6g}") for x, y in shown
            ),
            faint,
        )

    paths = []
    for colour, (name, points) in enumerate(finite.items()):
        noisy = name in smooth and len(points) > MOST_DOTS
        if noisy:
            paths.append(path(name, colour, points, faint=True))
        paths.append(path(name, colour, moving_average(points) if noisy else points))
    return Chart(
        title,
        x_label,
        tuple(paths),
        tuple(
            Tick(across(x), label)
            for x, label in _labelled(nice_ticks(x_low, x_high))
            if x_low <= x <= x_high
        ),
        tuple(Tick(down(y), label) for y, label in _labelled(y_ticks)),
        tuple(Tick(across(x), label) for x, label in marks if x_low <= x <= x_high),
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers in even steps that enclose the range; at least two."""
    span, size = high - low, max(abs(low), abs(high))
    if span < max(1e-9 * size, SMALLEST):  # as good as equal
        span = size if size >= SMALLEST else 1.0
    step = 10 ** math.floor(math.log10(span / TICKS))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= TICKS)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [n * step for n in range(first, last + 1)]


def moving_average(points: Points) -> list[tuple[float, float]]:
    """Each y as the mean of its neighbours within a twentieth of the points on either side."""
    reach = max(1, len(points) // 20)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    found = []
    for place, (x, _) in enumerate(points):
        first, end = max(0, place - reach), min(len(points), place + reach + 1)
        found.append((x, (sums[end] - sums[first]) / (end - first)))
    return found


def thinned(points: Points, most: int) -> list[tuple[float, float]]:
    """At most so many points: means of runs of equal length."""
    if len(points) <= most:
        return list(points)
    run = math.ceil(len(points) / most)
    parts = [points[start : start + run] for start in range(0, len(points), run)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _labelled(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Each with its text; all of an axis are written alike."""
    largest = max(map(abs, ticks))
    short = largest < 1e-2 or largest >= 1e6
    return [(tick, _power(tick) if short else f"{tick:,.6g}") for tick in ticks]


def _power(value: float) -> str:
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}" if value else "0"
