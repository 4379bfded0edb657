"""Gates of `hotclip activate` as people write them: "monitor>=0.5", "monitor>=live@photos"."""

from __future__ import annotations

import argparse
import re

from hotclip import Gate

SYNTAX = "METRIC>=N, METRIC<=N, METRIC>=live-N or METRIC<=live+N, with @DATASET behind it"
_GATE = re.compile(
    r"(?P<metric>[\w.-]+)(?P<sign>>=|<=)(?P<live>live)?(?P<number>[-+]?[\d.]+(?:e[-+]?\d+)?)?"
    r"(?:@(?P<dataset>\S+))?"
)


def gate_of(text: str) -> Gate:
    """Reads one.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = _GATE.fullmatch(text)
    if found is None or (found["number"] is None and not found["live"]):
        raise argparse.ArgumentTypeError(f"{text!r} is not {SYNTAX}")
    higher, dataset = found["sign"] == ">=", found["dataset"] or ""
    number = float(found["number"] or 0.0)
    if found["live"]:
        margin = -number if higher else number
        return Gate(metric=found["metric"], dataset=dataset, live_margin=margin + 0.0)
    if higher:
        return Gate(metric=found["metric"], dataset=dataset, at_least=number)
    return Gate(metric=found["metric"], dataset=dataset, at_most=number)
