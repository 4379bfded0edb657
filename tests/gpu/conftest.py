"""Tests of a CUDA device skip where there is none, and say so."""

import pytest


@pytest.fixture(scope="session")
def cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here; `make gpu-check` runs this where there is one")
    return "cuda:0"
