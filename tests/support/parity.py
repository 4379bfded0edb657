"""When two sets of embeddings count as equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

INPUTS = 64


def assert_parity(
    ours: NDArray[np.float32],
    reference: NDArray[np.float32],
    numbers: Sequence[int],
    *,
    tolerance: float = 0.01,
) -> None:
    """Same weights, same embeddings.

    Cosine at least 0.99999, distance at most `tolerance` of the median distance between the
    embeddings of 64 different inputs, and the nearest reference of each output is its own. On
    random weights different images reach a cosine of .99, so the cosine alone proves little.

    Args:
        ours: float32 (n, dim), of any length.
        reference: float32 (64, dim), of 64 different inputs.
        numbers: Which of the inputs each row of `ours` is.
        tolerance: 0.01 in fp32, 0.1 in bf16.
    """
    assert reference.shape == (INPUTS, ours.shape[1])
    assert ours.dtype == np.float32
    exact, unit = _unit(reference), _unit(ours)
    between = np.linalg.norm(exact[:, None] - exact[None], axis=2)
    median = np.median(between[np.triu_indices(INPUTS, 1)])
    assert median > 1e-4, "the inputs are not different"
    cosine = (unit * exact[list(numbers)]).sum(1)
    distances = np.linalg.norm(unit[:, None] - exact[None], axis=2)
    own = distances[np.arange(len(ours)), list(numbers)]
    if tolerance <= 0.01:
        assert cosine.min() >= 0.99999, cosine.min()
    assert own.max() <= tolerance * median, (own.max(), median)
    assert distances.argmin(1).tolist() == list(numbers)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    exact = rows.astype(np.float64)
    unit: NDArray[np.float64] = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return unit
