"""WiSE-FT: a version between two others."""

from __future__ import annotations

import torch

from hotclip_server.errors import FailedPrecondition
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
    """
    model = store.load(base, device="cpu").model
    target = store.load(tuned, device="cpu").model.state_dict()
    state = model.state_dict()
    if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in target.items()}:
        raise FailedPrecondition(
            f"versions {base} and {tuned} have different architectures",
            reason="ARCHITECTURES_DIFFER",
        )
    with torch.no_grad():
        for name, value in state.items():
            if value.is_floating_point():
                value.lerp_(target[name], alpha)
    return store.save_trained(model, base=tuned, source=f"merge:{base}:{tuned}:{alpha:g}")
