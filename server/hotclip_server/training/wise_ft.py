"""Weights between a base and what was trained from it, and how well they retrieve.

theta = (1 - alpha) * base + alpha * tuned, of every fp32 weight, the logit scale included:
Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", equation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from hotclip_server.models.between import between
from hotclip_server.training.evaluate import Evaluation

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of a sweep; 0 is the base, 1 what was trained."""


def interpolate(
    model: nn.Module, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> None:
    """Puts the weights at `alpha` into `model`, on its device.

    What is no number with a fraction (counters of batch norms) is the tuned model's. At 0 and 1
    the weights are exactly those of the base and of the tuned model.

    Args:
        base: State of the same architecture, on any device.
        tuned: Likewise; not the model's own tensors.
        alpha: In [0, 1].
    """
    with torch.no_grad():
        for name, target in model.state_dict().items():
            end = tuned[name].to(target.device)
            if target.is_floating_point():
                end = between(base[name].to(target.device), end, alpha)
            target.copy_(end)


def sweep(
    model: nn.Module,
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    evaluate: Callable[[], Evaluation],
    *,
    alphas: Sequence[float] = ALPHAS,
    known: Mapping[float, Evaluation] | None = None,
) -> Iterator[tuple[float, Evaluation]]:
    """Measures the weights at each alpha; leaves those of the last one measured in `model`.

    Args:
        evaluate: Measures `model` as it is.
        known: What was measured before, by alpha.
    """
    known = known or {}
    for alpha in alphas:
        found = known.get(alpha)
        if found is None:
            interpolate(model, base, tuned, alpha)
            found = evaluate()
        yield alpha, found
