"""What a run tells people in its log of how well it does: a line an epoch, and one of its end."""

from __future__ import annotations

from collections.abc import Mapping

from hotclip_server.training.events import EpochEnd
from hotclip_server.training.monitors import MONITOR, VALIDATION_LOSS

_SHOWN = {VALIDATION_LOSS: "validation loss", MONITOR: MONITOR}
"""Of the many metrics of an evaluation those that are told beside the one that decides, with how
they are called there."""


def epoch_line(event: EpochEnd, metrics: Mapping[str, float], monitor: str, *, best: bool) -> str:
    """How an epoch went.

    Args:
        metrics: Of the stage EPOCH. Without "epoch_loss" no step of the epoch was finite.
        monitor: Name of the one that decides which weights are best.
        best: Whether no weights were better so far.
    """
    loss = metrics.get("epoch_loss")
    parts = ["no step was finite" if loss is None else f"loss {loss:.4f}"]
    parts += [f"{name} {metrics[key]:.4f}" for key, name in _shown(monitor) if key in metrics]
    if best:
        parts.append("the best so far")
    return f"epoch {event.epoch} of {event.epochs}: {', '.join(parts)}"


def end_line(before: Mapping[str, float], after: Mapping[str, float], monitor: str) -> str:
    """What the weights that are kept reach, and what the base did; metrics of both."""
    parts = [f"{name} {after[key]:.4f} (before {before[key]:.4f})" for key, name in _shown(monitor)]
    return f"the weights that are kept: {', '.join(parts)}"


def _shown(monitor: str) -> list[tuple[str, str]]:
    decides = [] if monitor in _SHOWN else [(monitor, monitor)]
    return [*decides, *_SHOWN.items()]
