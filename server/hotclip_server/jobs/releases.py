"""What a job does to the versions that serve, from its own thread."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from hotclip_server.models.protocol import VersionManifest
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.state import ModelState

T = TypeVar("T")


class Releases(Protocol):
    """Every method blocks; on the job thread."""

    def register(self, model: str, manifest: VersionManifest, metrics: Mapping[str, float]) -> None:
        """Records a stored version."""

    def stage(self, version_id: str) -> None:
        """Makes it resident, warm and verified; errors as `ModelRegistry.stage`."""

    def state(self, model: str) -> ModelState:
        """Which version is live. Raises NotFound."""

    def activate(self, model: str, version_id: str, etag: str = "") -> None:
        """Makes a version live, if the model still has `etag`; errors as the registry's."""


class RegistryReleases:
    """Calls the registry on its event loop, which `start` notes."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """On the event loop, before the first job."""
        self._loop = asyncio.get_running_loop()

    def register(self, model: str, manifest: VersionManifest, metrics: Mapping[str, float]) -> None:
        """See `Releases`."""
        self._wait(self._registry.register(model, manifest, metrics))

    def stage(self, version_id: str) -> None:
        """See `Releases`."""
        self._wait(self._registry.stage(version_id))

    def state(self, model: str) -> ModelState:
        """See `Releases`."""

        async def read() -> ModelState:
            return self._registry.model_state(model)

        return self._wait(read())

    def activate(self, model: str, version_id: str, etag: str = "") -> None:
        """See `Releases`."""
        self._wait(self._registry.activate(model, version_id, etag=etag))

    def load(self, model: str, source: str) -> str:
        """Imports and stages a source; the id of the version. Errors as the registry's."""
        return self._wait(self._registry.load_version(model, source)).id

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            raise RuntimeError("a job ran before start. This is a bug.")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
