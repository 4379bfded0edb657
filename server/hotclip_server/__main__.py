"""`python -m hotclip_server`: parse, build, run."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from hotclip_server.config import ConfigError, ServerConfig
from hotclip_server.errors import HotclipError
from hotclip_server.logs import configure_logging
from hotclip_server.settings import read_config

if TYPE_CHECKING:
    from hotclip_server.lifecycle import App

log = logging.getLogger("hotclip_server")

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


def main() -> int:
    """Runs a server until SIGTERM or SIGINT; a second one ends the process at once.

    Returns:
        0 after a clean stop, 1 if it can't start, 2 for bad settings.
    """
    try:
        config = read_config(sys.argv[1:], os.environ)
        configure_logging(config.log_level, config.log_format)
        return run(config)
    except ConfigError as error:
        for name, problem in error.problems.items():
            print(f"hotclip-server: {name}: {problem}", file=sys.stderr)
        return EXIT_USAGE
    except (HotclipError, OSError) as error:
        log.error("hotclip can't start: %s", error)
        return EXIT_FAILED


def run(config: ServerConfig) -> int:
    """Builds the server and runs it on an event loop of its own."""
    # gRPC's fork handlers are for children that go on without exec; ours never do.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    # Heavy imports come after --help and after bad settings were refused.
    from hotclip_server.app import build

    app = build(config)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(app))
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


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


if __name__ == "__main__":
    sys.exit(main())
