"""The composition root: makes every long-lived object, starts and stops them in order."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Protocol

import grpc

from hotclip_proto.v1 import server_pb2
from hotclip_server.batching.batcher import Batcher, BatchLimits
from hotclip_server.batching.budget import Budget
from hotclip_server.batching.device import DeviceThread
from hotclip_server.batching.watchdog import Watchdog
from hotclip_server.config import ServerConfig
from hotclip_server.drain import Drain
from hotclip_server.health import Health
from hotclip_server.models.residents import Pin, Resident
from hotclip_server.pipeline import EncodePipeline, ItemLimits
from hotclip_server.rpc import SERVICE_NAMES, make_server
from hotclip_server.runtime import describe_runtime
from hotclip_server.services.encode import STREAM_METHOD, EncodeService
from hotclip_server.services.server_info import ServerService

log = logging.getLogger(__name__)


class Registry(Protocol):
    async def start(self, model: str, source: str) -> None: ...
    async def stop(self) -> None: ...
    def __iter__(self) -> Iterator[tuple[Resident, bool]]: ...
    def pin(self, model: str = "", version: str = "", expected_space_id: str = "") -> Pin: ...


class App:
    """A server. `build` makes it, `start` starts it, `stop` ends it."""

    def __init__(self, config: ServerConfig, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.device = DeviceThread()
        self.batcher = Batcher(self.device, batch_limits(config))
        self.pipeline = EncodePipeline(self.batcher, item_limits(config), config.prepare_threads)
        self.health = Health(SERVICE_NAMES)
        self.drain = Drain([STREAM_METHOD])
        self.watchdog = Watchdog(self.batcher.stalled_for_s, config.watchdog_s, self._set_serving)
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._ready = False

    async def start(self) -> None:
        """Listens, loads the model, then serves.

        Raises:
            OSError: the address is taken.
            HotclipError: the model can't be loaded.
        """
        config = self.config
        started = time.monotonic()
        self.device.start()
        self.pipeline.start()
        services = (
            EncodeService(self.registry, self.pipeline, self.drain, config.max_stream_in_flight),
            ServerService(config, describe_runtime(config), self._versions),
        )
        self._server = make_server(config, self.drain, self.health, services)
        self.address = listen(self._server, config.host, config.port)
        await self._server.start()
        await self.registry.start("default", config.model)
        self.watchdog.start()
        self._ready = True
        self._set_serving(True)
        for resident, live in self.registry:
            if live:
                log.info(
                    "hotclip serving on %s: model %s, version %s, ready in %.1f s",
                    self.address,
                    resident.model,
                    resident.version_id,
                    time.monotonic() - started,
                )

    async def stop(self) -> None:
        """Lets running calls end, then closes everything. Safe after a failed start."""
        self._ready = False
        self.health.set(False)
        grace_s = self.config.shutdown_grace_s
        if self._server is not None:
            ends = time.monotonic() + grace_s
            # Watchers are told before their streams end.
            await asyncio.sleep(0)
            await self.drain.end_streams(grace_s)
            await self._server.stop(max(0.0, ends - time.monotonic()))
            self._server = None
        await self.watchdog.stop()
        await self.batcher.stop()
        self.pipeline.stop()
        await self.registry.stop()
        if not self.device.stop(timeout_s=5.0):
            log.error("the device thread did not end: an encoder hangs")
        log.info("hotclip stopped")

    def _set_serving(self, healthy: bool) -> None:
        self.health.set(healthy and self._ready)

    def _versions(self) -> Iterator[server_pb2.VersionInfo]:
        for resident, live in self.registry:
            yield server_pb2.VersionInfo(
                model=resident.model,
                version=resident.version_id,
                space_id=resident.spec.space_id,
                dim=resident.spec.dim,
                image_size=resident.spec.image_size,
                live=live,
            )


def build(config: ServerConfig, *, registry: Registry) -> App:
    """Makes a server; starts nothing."""
    return App(config, registry)


def batch_limits(config: ServerConfig) -> BatchLimits:
    """Sizes for the batcher."""
    return BatchLimits(
        max_batch=config.max_batch or (32 if config.device == "cpu" else 128),
        budget=Budget(items=config.max_queue_items, nbytes=config.max_queue_bytes),
    )


def item_limits(config: ServerConfig) -> ItemLimits:
    """Sizes for the pipeline."""
    return ItemLimits(
        max_items=config.max_items_per_request,
        max_text_bytes=config.max_text_bytes,
        max_image_bytes=config.max_image_bytes,
    )


def listen(server: grpc.aio.Server, host: str, port: int) -> str:
    """Binds; gives "host:port" with the port that it got.

    Raises:
        OSError: the address is taken or not of this machine.
    """
    name = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{name}:{port}")
    except RuntimeError as error:
        raise OSError(f"can't listen on {name}:{port}: {error}") from None
    return f"{name}:{bound}"
