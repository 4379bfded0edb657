"""What a forward pass keeps."""

from __future__ import annotations

import weakref

import torch

from hotclip_server.training.chunking import kept_bytes


def test_what_was_measured_is_let_go() -> None:
    """An operator that keeps what it returned, as exp does, would hold itself by it."""

    def measured() -> weakref.ref[torch.Tensor]:
        layer = torch.nn.Linear(8, 8)
        kept = kept_bytes(lambda: layer(torch.ones(2, 8)).exp())
        assert kept == 2 * (2 * 8 * 4), "what the layer was given and what exp returned"
        return weakref.ref(layer.weight)

    assert measured()() is None
