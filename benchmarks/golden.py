"""Which answer is right for each version: plain open_clip's vectors, and how far one may be off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import read_references, tower_of
from benchmarks.parity import MAX_DISTANCE_RATIO, MAX_DISTANCE_RATIO_ROUNDED


class VersionsAlike(ValueError):
    """Two versions give such near vectors that the answer of one would pass as the other's."""


@dataclass(frozen=True, slots=True)
class Named:
    """An item by its kind and its position."""

    content: str
    position: int


@dataclass(frozen=True)
class Golden:
    """Of one version and one kind of items."""

    rows: NDArray[np.float32]
    """(n, dim), unit length."""
    allowed: float
    """Distance from a vector to its reference."""


class Goldens:
    """The references of every version.

    Args:
        folder: Holds a folder for each version, with `<content>.reference.npy` of each kind.
        exact: By version and tower: whether answers must be as near as fp32 is.

    Raises:
        VersionsAlike: the check could not tell two versions apart.
    """

    def __init__(
        self, folder: Path, exact: Mapping[str, Mapping[str, bool]], contents: Sequence[str]
    ) -> None:
        self._golden = {
            (version, content): _golden(
                read_references(folder / version, content), exact=towers[tower_of(content)]
            )
            for version, towers in exact.items()
            for content in contents
        }
        for (version, content), one in self._golden.items():
            for (other, same), two in self._golden.items():
                if version != other and content == same:
                    _require_apart(version, other, one, two)

    def mistakes(
        self, version: str, items: Sequence[Named], rows: NDArray[np.float32]
    ) -> list[str]:
        """What is wrong with the vectors (n, dim) of these items for that version."""
        if len(rows) != len(items):
            return [f"{len(rows)} vectors for {len(items)} items"]
        found = []
        for item, row in zip(items, rows, strict=True):
            golden = self._golden.get((version, item.content))
            if golden is None:
                return [f"{version} is a version that nobody has loaded"]
            distances = np.linalg.norm(golden.rows - row, axis=1)
            off = float(distances[item.position])
            if off > golden.allowed or int(distances.argmin()) != item.position:
                found.append(f"{item} of version {version} is off by {off:.3g}")
        return found


def _golden(rows: NDArray[np.float32], *, exact: bool) -> Golden:
    between = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    spread = float(np.median(between[np.triu_indices(len(rows), 1)]))
    ratio = MAX_DISTANCE_RATIO if exact else MAX_DISTANCE_RATIO_ROUNDED
    return Golden(rows=rows, allowed=ratio * spread)


def _require_apart(version: str, other: str, one: Golden, two: Golden) -> None:
    nearest = float(np.linalg.norm(one.rows - two.rows, axis=1).min())
    if nearest <= 2 * (one.allowed + two.allowed):
        raise VersionsAlike(f"versions {version} and {other} are only {nearest:.3g} apart")
