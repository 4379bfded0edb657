"""The composition root: makes every long-lived object, starts and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc

from hotclip_proto.v1 import server_pb2
from hotclip_server.batching.batcher import Batcher, BatchLimits
from hotclip_server.batching.budget import Budget
from hotclip_server.batching.device import DeviceThread
from hotclip_server.batching.watchdog import Watchdog
from hotclip_server.config import ServerConfig
from hotclip_server.drain import Drain
from hotclip_server.health import Health
from hotclip_server.models.protocol import VersionLoader
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.staging import StagingLimits
from hotclip_server.pipeline import EncodePipeline, ItemLimits
from hotclip_server.rpc import SERVICE_NAMES, listen, make_server
from hotclip_server.runtime import describe_runtime, resolve_device
from hotclip_server.services.encode import STREAM_METHOD, EncodeService
from hotclip_server.services.server_info import ServerService
from hotclip_server.storage.database import Database

log = logging.getLogger(__name__)

MODEL = "default"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The long-lived objects of a server; what needs starting is started by `App`."""

    database: Database
    device: DeviceThread
    batcher: Batcher
    pipeline: EncodePipeline
    registry: ModelRegistry
    health: Health
    drain: Drain
    services: tuple[object, ...]


def build(config: ServerConfig, *, loader: VersionLoader | None = None) -> App:
    """Makes a server; starts nothing.

    Args:
        loader: Where versions come from; the store below the data directory if None.

    Raises:
        ConfigError: the device is not there.
    """
    device_name = resolve_device(config.device)
    database = Database(config.database)
    device = DeviceThread()
    batcher = Batcher(device, batch_limits(config, device_name))
    pipeline = EncodePipeline(batcher, item_limits(config), config.prepare_threads)
    registry = ModelRegistry(
        database,
        loader or make_store(config),
        device.run,
        StagingLimits(device=device_name, precision=config.precision),
    )
    drain = Drain(self_ending=[STREAM_METHOD])
    services = (
        EncodeService(registry, pipeline, drain, config.max_stream_in_flight),
        ServerService(
            config, describe_runtime(config, device_name), lambda: resident_versions(registry)
        ),
    )
    return App(
        config,
        Parts(
            database=database,
            device=device,
            batcher=batcher,
            pipeline=pipeline,
            registry=registry,
            health=Health(SERVICE_NAMES),
            drain=drain,
            services=services,
        ),
    )


class App:
    """A server: `build` makes it, `start` starts it, `stop` ends it. Event loop only."""

    def __init__(self, config: ServerConfig, parts: Parts) -> None:
        self.config = config
        self.parts = parts
        self.address = ""
        """ "host:port" once it listens."""
        self._watchdog = Watchdog(
            parts.batcher.stalled_for_s, config.watchdog_s, self._encoding_moves
        )
        self._server: grpc.aio.Server | None = None
        self._ready = False

    async def start(self) -> None:
        """Listens, loads the model, then serves. After an error call `stop`.

        Raises:
            OSError: the address is taken, or the data directory can't be written.
            HotclipError: the model can't be loaded.
        """
        config, parts = self.config, self.parts
        started = time.monotonic()
        await asyncio.to_thread(config.data_dir.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(parts.database.open)
        parts.device.start()
        parts.pipeline.start()
        self._server = make_server(config, parts.drain, parts.health, parts.services)
        self.address = listen(self._server, config.host, config.port)
        await self._server.start()
        await parts.registry.start(MODEL, config.model)
        self._watchdog.start()
        self._ready = True
        parts.health.set(True)
        live = parts.registry.get_version(parts.registry.model_state(MODEL).live_version)
        log.info(
            "hotclip serving on %s: %s (%s), version %s, in %s on %s, ready after %.1f s",
            self.address,
            live.manifest.source,
            live.manifest.spec.architecture,
            live.id,
            config.precision,
            resolve_device(config.device),
            time.monotonic() - started,
        )

    async def stop(self) -> bool:
        """Lets running calls end, then closes everything. Also after a failed start.

        Returns:
            Whether everything ended; False: an encoder hangs, and the process must be ended
            without waiting for its threads.
        """
        parts = self.parts
        self._ready = False
        parts.health.set(False)
        if self._server is not None:
            await self._end_calls(self._server)
        await self._watchdog.stop()
        await parts.batcher.stop()
        parts.pipeline.stop()
        await parts.registry.stop()
        ended = await asyncio.to_thread(parts.device.stop, timeout_s=5.0)
        await asyncio.to_thread(parts.database.close)
        if ended:
            log.info("hotclip stopped")
        else:
            log.error("an encoder hangs; its thread is left behind")
        return ended

    async def _end_calls(self, server: grpc.aio.Server) -> None:
        ends = time.monotonic() + self.config.shutdown_grace_s
        # Watchers of health are told before their streams end.
        await asyncio.sleep(0)
        await self.parts.drain.end_streams(self.config.shutdown_grace_s)
        await server.stop(max(0.0, ends - time.monotonic()))

    def _encoding_moves(self, moves: bool) -> None:
        self.parts.health.set(moves and self._ready)


def make_store(config: ServerConfig) -> VersionLoader:
    """The store of versions below the data directory. Imports torch."""
    import torch

    from hotclip_server.encoding.image import ImageLimits
    from hotclip_server.models.store import VersionStore

    if config.threads:
        torch.set_num_threads(config.threads)
    return VersionStore(
        config.data_dir / "versions",
        models_dir=config.models_path,
        allow_random_weights=config.allow_random_weights,
        image_limits=ImageLimits(
            max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels
        ),
    )


def batch_limits(config: ServerConfig, device: str) -> BatchLimits:
    """Sizes for the batcher."""
    return BatchLimits(
        max_batch=config.max_batch or (32 if device == "cpu" else 128),
        budget=Budget(items=config.max_queue_items, nbytes=config.max_queue_bytes),
    )


def item_limits(config: ServerConfig) -> ItemLimits:
    """Sizes for the pipeline."""
    return ItemLimits(
        max_items=config.max_items_per_request,
        max_text_bytes=config.max_text_bytes,
        max_image_bytes=config.max_image_bytes,
    )


def resident_versions(registry: ModelRegistry) -> Iterator[server_pb2.VersionInfo]:
    """Versions in memory, for GetServerInfo."""
    for resident, live in registry:
        yield server_pb2.VersionInfo(
            model=resident.model,
            version=resident.version_id,
            space_id=resident.spec.space_id,
            dim=resident.spec.dim,
            image_size=resident.spec.image_size,
            live=live,
        )
