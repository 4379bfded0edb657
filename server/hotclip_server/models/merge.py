"""Versions made of the weights of others: between two (WiSE-FT), or the mean of several (soups)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hotclip_server.errors import FailedPrecondition
from hotclip_server.models.between import between
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.models.store import VersionStore


def merge_versions(store: VersionStore, base: str, tuned: str, alpha: float) -> VersionManifest:
    """Stores (1 - alpha) * base + alpha * tuned of every fp32 weight as a child of `tuned`.

    Linear interpolation of weights: Wortsman et al. 2022, "Robust fine-tuning of zero-shot
    models", equation 1.

    Args:
        alpha: In [0, 1].

    Raises:
        NotFound: no such version.
        DataLoss: the files of one are damaged.
        FailedPrecondition: their weights have other names or shapes; reason
            ARCHITECTURES_DIFFER.
        ResourceExhausted: both do not fit into memory; reason OUT_OF_MEMORY.
    """
    store.require_memory(base, tuned)
    model = store.load(base, device="cpu").model
    state = model.state_dict()
    target = _state_like(store, tuned, base, state)
    with torch.no_grad():
        for name, value in state.items():
            if value.is_floating_point():
                value.copy_(between(value, target[name], alpha))
    return store.save_trained(model, base=tuned, source=f"merge:{base}:{tuned}:{alpha:g}")


def average_versions(store: VersionStore, versions: Sequence[str]) -> VersionManifest:
    """Stores the mean of every fp32 weight of two or more versions as a child of the first.

    A uniform soup: Wortsman et al. 2022, "Model soups". Summed in fp64, one version at a time, so
    that the order does not matter beyond rounding. What is no number with a fraction is the first
    version's. Errors as `merge_versions`.
    """
    first = versions[0]
    store.require_memory(first, first)  # its own, another's, and a sum of twice the bytes
    model = store.load(first, device="cpu").model
    state = model.state_dict()
    sums = {n: v.to(torch.float64) for n, v in state.items() if v.is_floating_point()}
    for other in versions[1:]:
        added = _state_like(store, other, first, state)
        for name, total in sums.items():
            total += added[name]
    with torch.no_grad():
        for name, total in sums.items():
            state[name].copy_(total / len(versions))
    return store.save_trained(model, base=first, source=f"soup:{':'.join(versions)}"[:512])


def _state_like(
    store: VersionStore, version: str, other: str, wanted: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a version that must be of the same architecture as `other`."""
    state: dict[str, Tensor] = store.load(version, device="cpu").model.state_dict()
    if {n: v.shape for n, v in wanted.items()} != {n: v.shape for n, v in state.items()}:
        raise FailedPrecondition(
            f"versions {other} and {version} have different architectures",
            reason="ARCHITECTURES_DIFFER",
        )
    return state
