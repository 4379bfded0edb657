"""Checks that a freshly loaded version may serve: no torch, bounded work.

Every batch is small, because it takes its turn on the device between those of requests:
what a swap adds to a request's latency is at most one of these batches.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.features import EPSILON, unit_rows
from hotclip_server.encoding.protocol import Encoder, EncoderSpec, Prepared, Tower
from hotclip_server.errors import FailedPrecondition

RunOnDevice = Callable[[Encoder, Tower, Sequence[Prepared]], Awaitable[NDArray[np.float32]]]
"""Runs one batch in its turn on the device: shape (len(batch), dim)."""

TEXTS = (
    "a photo of a cat",
    "a diagram",
    "two red apples on a wooden table in the morning light, oil on canvas",
    "ein rotes Haus am See",
    "猫の写真 🐈",
)
IMAGES = 3
BATCH = {Tower.TEXT: 2, Tower.VISION: 1}
"""Items at a time: a request may wait for one of these batches, and on a processor two images take
twice as long as one. That the answer does not depend on the batch, an engine has shown on 64
inputs before it serves."""
ALONE = dict.fromkeys(Tower, 1)
AGAIN = {Tower.TEXT: 2, Tower.VISION: 1}
"""Probes that are run a second time."""
SEED = 20_240_229


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two runs of the same probes may lie apart: the larger of the two."""

    relative: float
    """Of the median distance between the vectors of different probes."""
    floor: float
    """Rounding alone; matters where an untrained encoder gives nearly equal vectors."""


FULL_PRECISION = Tolerance(relative=0.01, floor=1e-5)
REDUCED_PRECISION = Tolerance(relative=0.10, floor=2e-2)
ANOTHER_ENGINE = Tolerance(relative=0.30, floor=0.1)
"""Of products in reduced precision by one engine to those in fp32 by another, on inputs as far
from photographs as these: whether an engine may serve, 64 others have decided. Vectors of other
weights are further apart."""

MIN_COSINE = 0.99999
"""Of a vector and its reference in fp32."""
NEIGHBOURS = 10
MIN_RECALL = 0.9
"""Of the ten nearest neighbours, in int8."""

Probes = dict[Tower, list[Prepared]]
Rows = dict[Tower, NDArray[np.float32]]


def prepare(encoder: Encoder) -> Probes:
    """Fixed inputs of both towers; blocks for some milliseconds."""
    side = encoder.spec.image_size
    pixels = np.random.default_rng(SEED).integers(0, 256, (IMAGES, side, side, 3), np.uint8)
    pixels[0] //= 4  # A dark one and a flat one besides the noise.
    pixels[1] = 200
    return {
        Tower.TEXT: [encoder.prepare_text(text) for text in TEXTS],
        Tower.VISION: [encoder.prepare_tensor(image.tobytes(), side, side) for image in pixels],
    }


async def encode(
    encoder: Encoder, probes: Probes, run: RunOnDevice, sizes: Mapping[Tower, int] = BATCH
) -> Rows:
    """Runs the probes in batches of so many items, which also warms that shape up."""
    rows = {}
    for tower, batch in probes.items():
        size = sizes[tower]
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        rows[tower] = np.concatenate([await run(encoder, tower, part) for part in parts])
    return rows


async def check_alone(encoder: Encoder, probes: Probes, rows: Rows, run: RunOnDevice) -> None:
    """Runs probes again, alone: the answer must not depend on the batch or the moment.

    Raises:
        FailedPrecondition: it does; reason VERSION_UNFIT.
    """
    for tower, batch in probes.items():
        again = batch[: AGAIN[tower]]
        alone = np.concatenate([await run(encoder, tower, [probe]) for probe in again])
        compare(rows[tower], alone, encoder.engine(tower).precision, f"{tower.value} alone")


def check_golden(golden: Rows, rows: Rows, encoder: Encoder) -> None:
    """Whatever runs it now gives what plain open_clip gave in fp32.

    Raises:
        FailedPrecondition: it does not; reason VERSION_UNFIT.
    """
    for tower, block in rows.items():
        exact = encoder.engine(tower).precision == "fp32"
        tolerance = FULL_PRECISION if exact else ANOTHER_ENGINE
        _compare(golden[tower], block, tolerance, f"{tower.value} to plain open_clip")


def check_rows(rows: Rows, probes: Probes, spec: EncoderSpec) -> None:
    """Shape, dtype, finite, and a direction: no row is zero.

    Raises:
        FailedPrecondition: reason VERSION_UNFIT.
    """
    for tower, block in rows.items():
        expected = (len(probes[tower]), spec.dim)
        if block.shape != expected or block.dtype != np.float32:
            raise unfit(f"{tower.value} gives {block.dtype} {block.shape}, not float32 {expected}")
        if not np.isfinite(block).all():
            raise unfit(f"{tower.value} gives NaN or infinite vectors")
        if np.linalg.norm(block.astype(np.float64), axis=1).min() <= EPSILON:
            raise unfit(f"{tower.value} gives vectors of length zero")


@dataclass(frozen=True, slots=True)
class Parity:
    """How near vectors are to those of the reference.

    distance: The largest from a vector to its reference, over the median distance between the
        references of different inputs.
    nearest_is_own: Whether each vector's nearest reference is its own, or one that is all but
        equal to that: a tokenizer may have one token for whatever it does not know.
    recall: Of the ten references nearest to an input's own, how many are among the ten nearest
        to its vector, and of the ten vectors nearest to that: the smaller of the two means.
    """

    distance: float
    min_cosine: float
    nearest_is_own: bool
    recall: float

    def holds_in(self, precision: str) -> bool:
        """Whether they may serve: in fp32 within 1 % and with a cosine of 0.99999, in int8 if
        they retrieve the same, else within 10 %; on random weights different images reach a
        cosine of .99."""
        if precision == "int8":
            return self.recall >= MIN_RECALL
        if precision == "fp32" and not self.min_cosine >= MIN_COSINE:
            return False
        tolerance = FULL_PRECISION if precision == "fp32" else REDUCED_PRECISION
        return self.nearest_is_own and self.distance <= tolerance.relative

    def __str__(self) -> str:
        own = "" if self.nearest_is_own else ", nearest to another's"
        return (
            f"off by {self.distance:.2%}, cosine {self.min_cosine:.6f}, "
            f"recall@{NEIGHBOURS} {self.recall:.3f}{own}"
        )


def parity(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> Parity:
    """Compares features (n, dim) of n inputs, most of them different, with the reference's."""
    a, b = (unit_rows(rows).astype(np.float64) for rows in (expected, actual))
    spread = _spread(a)
    distances = np.linalg.norm(b[:, None] - a[None, :], axis=2)
    own = np.diagonal(distances)
    nearest = distances.argmin(1)
    of_nearest = np.linalg.norm(a - a[nearest], axis=1)
    return Parity(
        distance=float(own.max() / spread) if spread > 0 else float("inf"),
        min_cosine=float((a * b).sum(1).min()),
        nearest_is_own=bool((of_nearest <= 2 * FULL_PRECISION.relative * spread).all()),
        recall=min(_recall(a @ a.T, b @ a.T), _recall(a @ a.T, b @ b.T)),
    )


def _recall(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Mean share of neighbours that two matrices of similarities (n, n) agree on."""
    nearest = [_neighbours(similarity) for similarity in (expected, actual)]
    common = [len(set(e) & set(a)) for e, a in zip(*nearest, strict=True)]
    return float(np.mean(common) / nearest[0].shape[1])


def _neighbours(similarity: NDArray[np.float64]) -> NDArray[np.int64]:
    """The ten most similar inputs, not counting itself: (n, 10)."""
    others = similarity.copy()
    np.fill_diagonal(others, -np.inf)
    nearest: NDArray[np.int64] = np.argsort(-others, axis=1)[:, : min(NEIGHBOURS, len(others) - 1)]
    return nearest


def _spread(unit: NDArray[np.float64]) -> float:
    upper = np.triu_indices(len(unit), 1)
    return float(np.median(np.linalg.norm(unit[:, None] - unit[None, :], axis=2)[upper]))


def compare(
    expected: NDArray[np.float32], actual: NDArray[np.float32], precision: str, what: str
) -> None:
    """Each row, at unit length, as near to the expected one as the precision allows.

    Raises:
        FailedPrecondition: reason VERSION_UNFIT.
    """
    tolerance = FULL_PRECISION if precision == "fp32" else REDUCED_PRECISION
    _compare(expected, actual, tolerance, what)


def _compare(
    expected: NDArray[np.float32], actual: NDArray[np.float32], tolerance: Tolerance, what: str
) -> None:
    """`actual` may have fewer rows: those of the first inputs."""
    a, b = (unit_rows(rows).astype(np.float64) for rows in (expected, actual))
    spread = _spread(a)
    error = float(np.linalg.norm(a[: len(b)] - b, axis=1).max())
    allowed = max(tolerance.relative * spread, tolerance.floor)
    if not error <= allowed:
        raise unfit(f"golden probes differ: {what} is off by {error:.3g}, more than {allowed:.3g}")


def unfit(problem: str) -> FailedPrecondition:
    """A version that may not serve."""
    return FailedPrecondition(f"the version can't serve: {problem}", reason="VERSION_UNFIT")
