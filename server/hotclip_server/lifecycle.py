"""A server's life: everything starts in one order and ends in the reverse."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.batching.batcher import Batcher
from hotclip_server.batching.device import DeviceThread
from hotclip_server.batching.watchdog import Watchdog
from hotclip_server.config import ServerConfig
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.drain import Drain
from hotclip_server.drift.traffic import ShadowTraffic
from hotclip_server.frontends.supervisor import Frontends
from hotclip_server.health import Health
from hotclip_server.jobs.releases import RegistryReleases
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.waiting import LoopWait
from hotclip_server.models.engines import EngineSelector
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.pipeline import EncodePipeline
from hotclip_server.rpc import listen, make_server
from hotclip_server.search.collections import Collections
from hotclip_server.search.protocol import VectorStore
from hotclip_server.storage.database import Database
from hotclip_server.storage.folder_lock import FolderLock
from hotclip_server.trackers.follower import Followers

if TYPE_CHECKING:
    from hotclip_server.encoding.engines.onnx_engines import OnnxEngines
    from hotclip_server.encoding.engines.parts import PartThreads

log = logging.getLogger(__name__)

MODEL = "default"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The long-lived objects of a server; constructed, not started."""

    lock: FolderLock
    database: Database
    device: DeviceThread
    batcher: Batcher
    watchdog: Watchdog
    pipeline: EncodePipeline
    registry: ModelRegistry
    engines: EngineSelector | None
    part_threads: PartThreads | None
    onnx: OnnxEngines | None
    remove_leftovers: Callable[[], object]
    dataset_pool: ThreadPoolExecutor
    datasets: DatasetStore
    artifacts: ArtifactStore
    vectors: VectorStore
    collections: Collections
    wait: LoopWait
    traffic: ShadowTraffic
    releases: RegistryReleases
    jobs: JobRunner
    followers: Followers
    health: Health
    drain: Drain
    frontends: Frontends | None
    services: tuple[object, ...]


class App:
    """A server: `app.build` makes it, `start` starts it, `stop` ends it. Event loop only."""

    def __init__(self, config: ServerConfig, parts: Parts, device: str) -> None:
        self.config = config
        self.parts = parts
        self.address = ""
        """ "host:port" once it listens."""
        self._device = device
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listens, loads the model, then serves. After an error call `stop`.

        Raises:
            OSError: the address is taken, or the data directory can't be written.
            HotclipError: the model can't be loaded.
        """
        config, parts = self.config, self.parts
        started = time.monotonic()
        await asyncio.to_thread(self._open_files)
        await parts.jobs.recover()
        if parts.part_threads is not None:
            parts.part_threads.start()
        parts.device.start()
        parts.pipeline.start()
        self._server = make_server(config, parts.drain, parts.health, parts.services)
        if parts.frontends is None:
            self.address = listen(self._server, config.host, config.port)
        else:
            parts.frontends.start()
            self.address = parts.frontends.address
            self._server.add_insecure_port(parts.frontends.device_address)
        await self._server.start()
        # The process of the vectors starts while the weights are loaded.
        await asyncio.gather(parts.registry.start(MODEL, config.model), parts.vectors.start())
        await parts.collections.start()
        parts.datasets.start()
        parts.releases.start()
        parts.wait.start()
        await parts.jobs.start()
        parts.watchdog.start()
        parts.drain.set_started()
        if parts.frontends is not None:
            await parts.frontends.ready()
        parts.health.set_ready(True)
        if parts.engines is not None:
            parts.engines.start()
        live = parts.registry.get_version(parts.registry.model_state(MODEL).live_version)
        log.info(
            "hotclip serving on %s: %s (%s), version %s, on %s, ready after %.1f s",
            self.address,
            live.manifest.source,
            live.manifest.spec.architecture,
            live.id,
            self._device,
            time.monotonic() - started,
        )

    async def stop(self) -> bool:
        """Lets running calls end, then closes everything. Also after a failed start.

        Returns:
            Whether everything ended; False: an encoder hangs, or a version is being loaded, and
            the process must be ended without waiting for its threads.
        """
        parts = self.parts
        parts.health.set_ready(False)
        if self._server is not None:
            await self._end_calls(self._server)
        if parts.frontends is not None:
            await parts.frontends.stop()
        await parts.watchdog.stop()
        if parts.onnx is not None:
            parts.onnx.stop()
        if parts.engines is not None:
            await parts.engines.stop()
        await parts.traffic.stop()
        await parts.jobs.stop()
        await asyncio.to_thread(parts.followers.stop)
        await parts.datasets.stop()
        await parts.collections.stop()
        await parts.batcher.stop()
        parts.pipeline.stop()
        loaded = await parts.registry.stop()
        await parts.vectors.close()
        ended = await asyncio.to_thread(parts.device.stop, timeout_s=5.0)
        if parts.part_threads is not None:
            parts.part_threads.stop()
        await asyncio.to_thread(self._close_files)
        if not ended:
            log.error("an encoder hangs; its thread is left behind")
        elif not loaded:
            log.warning("a version was still being fetched or loaded; that is broken off")
        else:
            log.info("hotclip stopped")
        return ended and loaded

    async def _end_calls(self, server: grpc.aio.Server) -> None:
        # NOT_SERVING first: balancers send new calls elsewhere while they are still answered.
        await asyncio.sleep(self.config.shutdown_wait_s)
        ends = time.monotonic() + self.config.shutdown_grace_s
        frontends = self.parts.frontends
        drained = frontends.drain(self.config.shutdown_grace_s) if frontends else _nothing()
        await asyncio.gather(self.parts.drain.finish(self.config.shutdown_grace_s), drained)
        await server.stop(max(0.0, ends - time.monotonic()))

    def _open_files(self) -> None:
        self.config.data_dir.mkdir(parents=True, exist_ok=True)
        self.parts.lock.open()
        self.parts.database.open()
        self.parts.remove_leftovers()
        self.parts.datasets.open()
        self.parts.artifacts.open()

    def _close_files(self) -> None:
        self.parts.dataset_pool.shutdown()
        self.parts.database.close()
        self.parts.lock.close()


async def _nothing() -> None:
    """No front ends have to end their calls."""
