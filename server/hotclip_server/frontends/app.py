"""One front end: the composition root of its process, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import grpc

from hotclip_server.batching.cache import FeatureCache
from hotclip_server.boundary import ErrorBoundary
from hotclip_server.config import ServerConfig
from hotclip_server.drain import Drain
from hotclip_server.encoding.protocol import Encoder
from hotclip_server.frontends.arena import ArenaSizes, map_arena
from hotclip_server.frontends.copies import CopySender
from hotclip_server.frontends.frames import Frames, Kind
from hotclip_server.frontends.proxy import Proxy
from hotclip_server.frontends.remote import RemoteBatcher
from hotclip_server.frontends.service import FrontEncodeService
from hotclip_server.frontends.versions import FrontVersions
from hotclip_server.logs import configure_logging
from hotclip_server.loop import loop_factory
from hotclip_server.pipeline import EncodePipeline, ItemLimits
from hotclip_server.rpc import listen, make_frontend_server
from hotclip_server.services.encode import STREAM_METHOD

log = logging.getLogger(__name__)

LoadEncoder = Callable[[Mapping[str, Any], ServerConfig], Encoder]
"""Makes of the facts of a version what prepares its items; blocks."""


class FrontendApp:
    """A front end; lives as long as its connection to the device process.

    Args:
        load: Makes what prepares items.
        arena: File descriptor of the shared memory.
    """

    def __init__(self, load: LoadEncoder, arena: int) -> None:
        self._load_encoder = load
        self._arena = arena
        self._lost = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.frames = Frames(self._on_frame, lambda _: self._lost.set())
        self._copies = CopySender(self.frames)
        self._drain = Drain(self_ending=[STREAM_METHOD])
        self._versions = FrontVersions(lambda number: self.frames.tell("dropped", number=number))
        self._config = ServerConfig()
        self._memory: mmap.mmap | None = None
        self._batcher: RemoteBatcher | None = None
        self._pipeline: EncodePipeline | None = None
        self._proxy: Proxy | None = None
        self._server: grpc.aio.Server | None = None

    async def run(self) -> None:
        """Until the device process is gone, or has ended this one."""
        await self._lost.wait()
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            await self._server.stop(0)
        if self._proxy is not None:
            await self._proxy.close()
        if self._pipeline is not None:
            self._pipeline.stop()

    def _on_frame(self, kind: int, body: bytes) -> None:
        if kind != Kind.CONTROL:
            if self._batcher is None:
                raise RuntimeError("an answer before the start; this is a bug")
            self._batcher.on_frame(kind, body)
            return
        told = json.loads(body)
        match told["what"]:
            case "start":
                self._start(told)
            case "load":
                self._spawn(self._load(told))
            case "versions":
                self._versions.apply(told)
                self.frames.tell("known", number=told["number"])
            case "shares":
                self._copies.apply(told)
            case "hold":
                self._versions.hold(told["number"])
                self.frames.tell("holding", number=told["number"])
            case "listen":
                self._spawn(self._listen(told["address"], told["device"]))
            case "drain":
                self._spawn(self._end_calls(told["grace_s"]))

    def _start(self, told: dict[str, Any]) -> None:
        given = ServerConfig(**told["config"])
        config = self._config = replace(
            given,
            prepare_threads=given.prepare_threads
            or math.ceil((os.cpu_count() or 1) / given.frontends),
            cache_bytes=given.cache_bytes // given.frontends,
        )
        configure_logging(config.log_level, config.log_format)
        sizes = ArenaSizes(**told["sizes"])
        self._memory = map_arena(self._arena, sizes)
        os.close(self._arena)
        self._batcher = RemoteBatcher(
            self.frames, self._memory, sizes, self._versions.announced.number_of
        )
        cache = FeatureCache(config.cache_bytes)
        limits = ItemLimits(
            max_items=config.max_items_per_request,
            max_text_bytes=config.max_text_bytes,
            max_image_bytes=config.max_image_bytes,
        )
        self._pipeline = EncodePipeline(self._batcher, limits, config.prepare_threads, cache)
        self._pipeline.start()

    async def _load(self, told: dict[str, Any]) -> None:
        facts = told["facts"]
        encoder = await asyncio.to_thread(self._load_encoder, facts, self._config)
        self._versions.add(told["number"], told["model"], told["version"], encoder)
        self.frames.tell("loaded", number=told["number"])

    async def _listen(self, address: str, device: str) -> None:
        if self._pipeline is None:
            raise RuntimeError("told to listen before the start; this is a bug")
        config = self._config
        errors = ErrorBoundary(self._drain, config.max_message_bytes)
        self._proxy = Proxy(device)
        self._proxy.open()
        service = FrontEncodeService(
            self._versions, self._pipeline, self._drain, config.max_stream_in_flight, self._copies
        )
        self._server = make_frontend_server(config, errors, service, self._proxy)
        host, _, port = address.rpartition(":")
        self._drain.set_started()
        listen(self._server, host.strip("[]"), int(port))
        await self._server.start()
        self.frames.tell("listening")

    async def _end_calls(self, grace_s: float) -> None:
        ends = asyncio.get_running_loop().time() + grace_s
        await self._drain.finish(grace_s)
        if self._server is not None:
            await self._server.stop(max(0.0, ends - asyncio.get_running_loop().time()))
        self.frames.tell("drained")

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a front end fails; another takes its place", exc_info=error)
            self._lost.set()


def main(load: LoadEncoder) -> None:
    """Runs a front end on the descriptors that the command line names."""
    connection, arena = int(sys.argv[1]), int(sys.argv[2])
    # The server ends this process in order; signals of a terminal or of a service manager reach
    # both.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(load, connection, arena))
    # Threads that still decode keep nothing that anybody needs.
    logging.shutdown()
    os._exit(0)


async def _serve(load: LoadEncoder, connection: int, arena: int) -> None:
    app = FrontendApp(load, arena)
    with contextlib.closing(socket.socket(fileno=connection)) as given:
        await asyncio.get_running_loop().create_connection(lambda: app.frames, sock=given.dup())
    await app.run()
