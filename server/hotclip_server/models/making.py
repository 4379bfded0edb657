"""Versions made of others, and what open_clip knows. Imports torch when it is asked to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hotclip_server.errors import Unimplemented
from hotclip_server.models.protocol import ArchitectureInfo, VersionManifest

if TYPE_CHECKING:
    from hotclip_server.models.store import VersionStore


def describe_architectures() -> Sequence[ArchitectureInfo]:
    """What open_clip knows."""
    from hotclip_server.models import architectures

    return architectures.describe_architectures()


def make_merger(store: VersionStore | None) -> Callable[[str, str, float], VersionManifest]:
    """Interpolates stored versions; without a store there are none."""

    def merge(base: str, tuned: str, alpha: float) -> VersionManifest:
        if store is None:
            raise Unimplemented("this server has no store of versions")
        from hotclip_server.models.merge import merge_versions

        return merge_versions(store, base, tuned, alpha)

    return merge


def make_averager(
    store: VersionStore | None,
) -> Callable[[Sequence[str]], VersionManifest]:
    """Averages stored versions; without a store there are none."""

    def average(versions: Sequence[str]) -> VersionManifest:
        if store is None:
            raise Unimplemented("this server has no store of versions")
        from hotclip_server.models.merge import average_versions

        return average_versions(store, versions)

    return average
