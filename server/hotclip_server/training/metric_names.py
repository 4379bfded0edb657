"""Losses and miners of pytorch-metric-learning that a run may name, with what they take.

Left out are losses with weights of their own for classes or proxies (ArcFace, ProxyNCA, ...),
because these are no part of a CLIP model, what wraps other losses, and what remembers batches or
draws by chance: a run that goes on would not end with the same bits. `examples/migration.md` names
each. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Option = float | bool | str


@dataclass(frozen=True, slots=True)
class Number:
    """Between `low` and `high`, both included."""

    low: float
    high: float
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some strings."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """True or false."""


Kind = Number | Choice | Switch
Options = Mapping[str, Kind]

_MARGIN, _FACTOR, _SMALL = Number(0, 10), Number(0, 1000), Number(1e-4, 10)

METRIC_LOSSES: Mapping[str, Options] = {
    "AngularLoss": {"alpha": Number(1, 89)},
    "CircleLoss": {"m": Number(0, 1), "gamma": _FACTOR},
    "ContrastiveLoss": {"pos_margin": _MARGIN, "neg_margin": _MARGIN},
    "FastAPLoss": {"num_bins": Number(2, 100, whole=True)},
    "GeneralizedLiftedStructureLoss": {"pos_margin": _MARGIN, "neg_margin": _MARGIN},
    "IntraPairVarianceLoss": {"pos_eps": Number(0, 1), "neg_eps": Number(0, 1)},
    "LiftedStructureLoss": {"pos_margin": _MARGIN, "neg_margin": _MARGIN},
    "MarginLoss": {"margin": _MARGIN, "nu": _MARGIN, "beta": _MARGIN},
    "MultiSimilarityLoss": {"alpha": _FACTOR, "beta": _FACTOR, "base": Number(-1, 1)},
    "NCALoss": {"softmax_scale": _FACTOR},
    "NPairsLoss": {},
    "NTXentLoss": {"temperature": _SMALL},
    "SignalToNoiseRatioContrastiveLoss": {"pos_margin": _MARGIN, "neg_margin": _MARGIN},
    "SmoothAPLoss": {"temperature": _SMALL},
    "SupConLoss": {"temperature": _SMALL},
    "TripletMarginLoss": {"margin": _MARGIN, "swap": Switch(), "smooth_loss": Switch()},
    "TupletMarginLoss": {"margin": Number(0, 90), "scale": _FACTOR},
}
"""Margins are distances of unit vectors or, for angles, degrees, as in the library."""

METRIC_MINERS: Mapping[str, Options] = {
    "AngularMiner": {"angle": Number(1, 89)},
    "BatchEasyHardMiner": {
        "pos_strategy": Choice(("easy", "semihard", "hard", "all")),
        "neg_strategy": Choice(("easy", "semihard", "hard", "all")),
    },
    "BatchHardMiner": {},
    "MultiSimilarityMiner": {"epsilon": _MARGIN},
    "PairMarginMiner": {"pos_margin": _MARGIN, "neg_margin": _MARGIN},
    "TripletMarginMiner": {
        "margin": _MARGIN,
        "type_of_triplets": Choice(("all", "hard", "semihard", "easy")),
    },
}


def option_problems(
    given: Mapping[str, Option], known: Options, path: str
) -> Iterator[tuple[str, str]]:
    """(path, reason) of each option that is unknown or out of its range."""
    for name, value in given.items():
        at = f"{path}.{name}"
        match known.get(name):
            case None:
                yield at, f"is none of {', '.join(known) or 'no options'}"
            case Switch():
                if not isinstance(value, bool):
                    yield at, f"must be true or false, got {value!r}"
            case Choice(names):
                if value not in names:
                    yield at, f"must be one of {', '.join(names)}, got {value!r}"
            case Number(low, high, whole):
                good = not isinstance(value, bool | str) and low <= value <= high
                if not good or (whole and value != int(value)):
                    kind = "whole number" if whole else "number"
                    yield at, f"must be a {kind} in {low:g} to {high:g}, got {value!r}"
