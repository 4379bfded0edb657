"""A greedy soup: weights of several epochs averaged, as long as that makes them better.

Wortsman et al. 2022, "Model soups", recipe 1: in the order of their scores each joins if the
average with it is at least as good as without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from hotclip_server.training.evaluate import Evaluation


@dataclass(frozen=True, kw_only=True)
class Soup:
    """What came of it; the model holds these weights."""

    evaluation: Evaluation
    members: int


def greedy_soup(
    scores: Mapping[str, float],
    best: Evaluation,
    read: Callable[[str], Mapping[str, Tensor]],
    put: Callable[[Mapping[str, Tensor]], None],
    measure: Callable[[], Evaluation],
) -> Soup:
    """Leaves the soup in the model.

    Args:
        scores: Of each candidate by name, at least one.
        best: Evaluation of the one with the highest score.
        read: Weights by name; fp32.
        put: Writes weights into the model.
        measure: Evaluates the model.
    """
    first, *others = sorted(scores, key=lambda name: -scores[name])
    average = {name: tensor.clone() for name, tensor in read(first).items()}
    members = 1
    for candidate in others:
        tensors = read(candidate)
        trial = {n: tensor.lerp(tensors[n], 1 / (members + 1)) for n, tensor in average.items()}
        put(trial)
        found = measure()
        if found.score >= best.score:
            average, best, members = trial, found, members + 1
    put(average)
    return Soup(evaluation=best, members=members)
