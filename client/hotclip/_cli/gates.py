"""Gates of `hotclip activate` as people write them: "monitor>=0.5", "monitor>=live@photos"."""

from __future__ import annotations

import argparse
import re

from hotclip import Gate

SYNTAX = "METRIC>=N, METRIC<=N, METRIC>=live-N or METRIC<=live+N, with @DATASET behind it"
_GATE = re.compile(
    r"(?P<metric>[\w.-]+)(?P<sign>>=|<=)(?P<live>live)?"
    r"(?P<number>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)?"
    r"(?:@(?P<dataset>\S+))?"
)
_LESS_IS_BETTER = ("epoch_loss", "validation_loss", "mean_rank", "median_rank")


def gate_of(text: str) -> Gate:
    """Reads one.

    Raises:
        argparse.ArgumentTypeError: it is none, or asks for more of what should be less.
    """
    found = _GATE.fullmatch(text)
    if found is None or (found["number"] is None and not found["live"]):
        raise argparse.ArgumentTypeError(f"{text!r} is not {SYNTAX}")
    metric, dataset = found["metric"], found["dataset"] or ""
    at_least = found["sign"] == ">="
    number = float(found["number"] or 0.0)
    if found["live"]:
        # The server knows which way is worse; what is written must mean the same.
        if at_least is metric.endswith(_LESS_IS_BETTER):
            better, right = ("less", "<=live+N") if at_least else ("more", ">=live-N")
            raise argparse.ArgumentTypeError(
                f"{text!r}: {better} of {metric} is better: write {metric}{right}"
            )
        margin = -number if at_least else number
        return Gate(metric=metric, dataset=dataset, live_margin=margin + 0.0)
    if at_least:
        return Gate(metric=metric, dataset=dataset, at_least=number)
    return Gate(metric=metric, dataset=dataset, at_most=number)
