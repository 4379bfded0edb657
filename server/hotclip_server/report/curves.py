"""The curves of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hotclip_server.report.charts import Chart, line_chart, thinned
from hotclip_server.report.metric_table import DIRECTIONS, MONITOR, VALIDATION_LOSS
from hotclip_server.report.run_log import Metrics, RunLog

MOST_POINTS = 400
Series = list[tuple[float, float]]


def curves(log: RunLog) -> list[Chart]:
    """Those for which something was measured."""
    found = [
        line_chart(
            "Loss",
            {"training": _steps(log, "loss"), "held out": _held_out(log, VALIDATION_LOSS)},
            x_label="step",
            smooth=("training",),
        ),
        line_chart(
            "Held-out retrieval: mean reciprocal rank",
            {name: _held_out(log, f"{key}_reciprocal_rank") for key, name in DIRECTIONS.items()},
            x_label="step",
        ),
        line_chart("Learning rate", _one(log, "learning_rate"), x_label="step", from_zero=True),
        line_chart(
            "Gradient norm, before clipping",
            _one(log, "grad_norm"),
            x_label="step",
            from_zero=True,
            smooth=("grad norm",),
        ),
        line_chart("Logit scale", _one(log, "logit_scale"), x_label="step"),
        line_chart(
            "Pairs a second",
            _one(log, "samples_per_second"),
            x_label="step",
            from_zero=True,
            smooth=("samples per second",),
        ),
    ]
    return [chart for chart in found if chart is not None]


def sweep_chart(alphas: Mapping[float, Metrics], chosen: float | None) -> Chart | None:
    """What the weights between the base (0) and the trained ones (1) reach."""
    lines: dict[str, Series] = {"mean of both": _sorted(_pick(alphas.items(), MONITOR))}
    for key, name in DIRECTIONS.items():
        lines[name] = _sorted(_pick(alphas.items(), f"{key}_reciprocal_rank"))
    marks = [] if chosen is None else [(chosen, "chosen")]
    return line_chart(
        "Mean reciprocal rank between base and trained weights",
        lines,
        x_label="alpha",
        marks=marks,
    )


def _one(log: RunLog, name: str) -> dict[str, Series]:
    return {name.replace("_", " "): _steps(log, name)}


def _steps(log: RunLog, name: str) -> Series:
    return thinned(_pick(log.steps, name), MOST_POINTS)


def _held_out(log: RunLog, name: str) -> Series:
    """Before training, which is step 0, and after each epoch."""
    measured = {**({0: log.before} if log.before else {}), **log.epochs}
    return thinned(_sorted(_pick(measured.items(), name)), MOST_POINTS)


def _pick(measured: Iterable[tuple[float, Metrics]], name: str) -> Series:
    return [(float(at), metrics[name]) for at, metrics in measured if name in metrics]


def _sorted(points: Series) -> Series:
    return sorted(points)
