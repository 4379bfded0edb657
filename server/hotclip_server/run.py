"""Runs a server on an event loop until it is told to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal

from hotclip_server.app import build
from hotclip_server.config import ServerConfig
from hotclip_server.encoding.open_clip_import import import_open_clip
from hotclip_server.errors import HotclipError
from hotclip_server.lifecycle import App
from hotclip_server.loop import loop_factory

log = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED = 0, 1


def run(config: ServerConfig) -> int:
    """Builds the server and runs it on an event loop of its own.

    Returns:
        The exit status.

    Raises:
        ConfigError: the device is not there.
    """
    try:
        import_open_clip()
        app = build(config)
        # What was imported is never looked at again: a collection that walks through all of it
        # holds up every thread for a tenth of a second.
        gc.freeze()
        gc.enable()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serve(app))
    except (HotclipError, OSError) as error:
        log.error("hotclip can't start: %s", error)
        return EXIT_FAILED
    return EXIT_OK


async def serve(app: App) -> None:
    """Serves until a signal, then stops in order."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            log.warning("forced to stop")
            os._exit(128 + number)
        log.info("stopping: running calls end; a second signal forces")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    starting = asyncio.create_task(app.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            await stopping
    finally:
        starting.cancel()
        stopping.cancel()
        await asyncio.wait([starting, stopping])
        if not await app.stop():
            # The end of the interpreter would wait for threads that hang.
            logging.shutdown()
            os._exit(EXIT_FAILED)
