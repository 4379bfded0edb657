"""Starts front ends, keeps them running, and lets all of them know a version before anybody
relies on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hotclip_server.batching.batcher import Batcher
from hotclip_server.config import ServerConfig
from hotclip_server.errors import HotclipError, Unavailable
from hotclip_server.frontends.arena import ArenaSizes, map_arena, new_arena
from hotclip_server.frontends.copies import Copies, Copy
from hotclip_server.frontends.frontend import ANSWER_S, Frontend
from hotclip_server.frontends.link import Link
from hotclip_server.frontends.places import private_folder, reserve
from hotclip_server.frontends.table import facts_of, names_of
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.residents import Resident

log = logging.getLogger(__name__)

BACKOFF_S = (0.05, 0.2, 1.0, 5.0)
STARTED_WELL_S = 10.0
LOAD_S = 120.0
"""A front end that takes longer to load tokenizer and preprocessing of a version is replaced; the
first time it imports what they need."""


class Frontends:
    """All front ends of a server; an `Audience` of the registry. Event loop only.

    Args:
        config: Theirs too.
        program: Module that a front end runs.
        sizes: Of each one's shared memory.
    """

    def __init__(
        self,
        config: ServerConfig,
        registry: ModelRegistry,
        batcher: Batcher,
        program: str,
        sizes: ArenaSizes | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._batcher = batcher
        self._program = program
        self._sizes = sizes or ArenaSizes()
        self._running: set[Frontend] = set()
        self._copies: Copies | None = None
        self._supervisors: list[asyncio.Task[None]] = []
        self._watch: asyncio.Task[None] | None = None
        self._joining: set[asyncio.Task[None]] = set()
        self._number = 0
        self._holding = 0
        self._free = asyncio.Event()
        self._free.set()
        self._serving = asyncio.Event()
        self._news = asyncio.Event()
        self._port: socket.socket | None = None
        self._folder: Path | None = None
        self.address = ""
        """ "host:port" where they listen."""
        self.device_address = ""
        """Where the device process listens for them: "unix:<path>"."""

    @property
    def pids(self) -> list[int]:
        """Process ids of those that run."""
        return [frontend.process.pid for frontend in self._running]

    @property
    def listening(self) -> list[int]:
        """Process ids of those that take calls."""
        return [f.process.pid for f in self._running if f.listening.is_set()]

    def set_copies(self, copies: Copies) -> None:
        """From now on `copies` gets the requests that it wants copied."""
        self._copies = copies
        copies.changed = self._all_shares

    def start(self) -> None:
        """Takes the port and starts the processes, which listen once `ready` is awaited.

        Raises:
            OSError: the address is taken or not of this machine.
        """
        self._port, self.address = reserve(self._config.host, self._config.port)
        self._folder = private_folder(self._config.data_dir)
        self.device_address = f"unix:{self._folder / 'device'}"
        self._supervisors = [
            asyncio.create_task(self._supervise(), name=f"hotclip-frontend-{number}")
            for number in range(self._config.frontends)
        ]

    async def ready(self) -> None:
        """Waits until as many listen as there should be.

        Raises:
            Unavailable: they don't.
        """
        self._serving.set()
        self._watch = asyncio.create_task(self._follow(), name="hotclip-frontend-versions")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOAD_S):
                while len(self.listening) < self._config.frontends:
                    await self._news.wait()
                return
        raise Unavailable("the front ends do not start", reason="FRONTENDS_NOT_READY")

    async def drain(self, grace_s: float) -> None:
        """Lets the calls that they have end; new ones are refused."""
        running = tuple(self._running)
        for frontend in running:
            frontend.link.frames.tell("drain", grace_s=grace_s)
        await asyncio.gather(
            *(
                frontend.until(frontend.drained.is_set, grace_s + ANSWER_S, "end its calls")
                for frontend in running
            )
        )

    async def stop(self) -> None:
        """Ends every process."""
        tasks = [*self._supervisors, *self._joining, *filter(None, [self._watch])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._port is not None:
            self._port.close()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def told(self) -> None:
        """See `Audience`."""
        await self._load(self._joined(), [resident for resident, _ in self._registry])
        await self._publish()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """See `Audience`: hold, let the caller change what is live, let go."""
        await self.told()
        self._free.clear()
        self._holding += 1
        hold = self._holding
        try:
            for frontend in self._joined():
                frontend.link.frames.tell("hold", number=hold)
            await self._all(lambda f: f.holds >= hold, "hold its calls")
            try:
                yield
            finally:
                # Loaded already, unless they were let go in the meantime.
                live = [resident for resident, live in self._registry if live]
                await self._load(self._joined(), live)
                await self._publish(release=hold)
        finally:
            self._free.set()

    async def _follow(self) -> None:
        """Tells of changes that nobody waits for, e.g. a version that drains."""
        with contextlib.suppress(Unavailable):  # the registry stops
            async for _ in self._registry.watch():
                self._send_table(0)

    def _joined(self) -> list[Frontend]:
        return [frontend for frontend in self._running if frontend.joined]

    async def _all(self, true: Callable[[Frontend], bool], what: str) -> None:
        await asyncio.gather(
            *(
                frontend.until(lambda f=frontend: true(f), ANSWER_S, what)  # type: ignore[misc]
                for frontend in self._joined()
            )
        )

    async def _load(self, frontends: Iterable[Frontend], residents: list[Resident]) -> None:
        """Makes front ends ready to prepare items of these versions."""
        await asyncio.gather(*(self._load_one(f, residents) for f in frontends))

    async def _load_one(self, frontend: Frontend, residents: list[Resident]) -> None:
        link = frontend.link
        for resident in residents:
            if resident in link.present or link.gone:
                continue
            try:
                pin = self._registry.pin(resident.model, resident.version_id)
            except HotclipError:  # gone meanwhile
                continue
            number = link.lend(pin)
            link.frames.tell(
                "load",
                number=number,
                version=pin.resident.version_id,
                model=pin.resident.model,
                facts=facts_of(pin.resident.encoder),
            )
        wanted = {link.present[r] for r in residents if r in link.present}
        if not wanted <= frontend.loaded:
            await frontend.until(lambda: wanted <= frontend.loaded, LOAD_S, "load a version")

    async def _publish(self, release: int = 0) -> None:
        number = self._send_table(release)
        await self._all(lambda f: f.known >= number, "take in a change of versions")

    def _send_table(self, release: int) -> int:
        """Tells every front end that has joined what is resident and live now.

        Args:
            release: Number of the hold that ends with it; 0: none does.
        """
        self._number += 1
        for frontend in self._joined():
            self._tell_table(frontend, release)
        return self._number

    def _tell_table(self, frontend: Frontend, release: int) -> None:
        link = frontend.link
        states = list(self._registry)
        residents = {resident for resident, _ in states}
        gone = [link.take_back(r) for r in tuple(link.present) if r not in residents]
        there = {
            resident: number
            for resident, number in link.present.items()
            if number in frontend.loaded
        }
        link.frames.tell(
            "versions",
            number=self._number,
            release=release,
            gone=gone,
            present=list(there.values()),
            live={r.model: there[r] for r, live in states if live and r in there},
            **names_of(self._registry),
        )

    def _all_shares(self) -> None:
        for frontend in self._joined():
            self._tell_shares(frontend)

    def _tell_shares(self, frontend: Frontend) -> None:
        shares = self._copies.shares() if self._copies else []
        frontend.link.frames.tell("shares", shares=shares)

    def _take(self, copy: Copy) -> None:
        if self._copies is not None:
            self._copies.drawn(
                copy.model, copy.version, copy.requests, copy.items, copy.answer, copy.truncate
            )

    async def _join(self, frontend: Frontend) -> None:
        """Lets a new front end listen, once it knows all that is there."""
        await self._serving.wait()
        while not frontend.link.gone:
            residents = [resident for resident, _ in self._registry]
            await self._load_one(frontend, residents)
            await self._free.wait()
            if all(r in frontend.link.present for r, _ in self._registry):
                break
        # One step of the loop: from here on it is told of every change.
        frontend.joined = True
        self._tell_table(frontend, 0)
        self._tell_shares(frontend)
        frontend.link.frames.tell("listen", address=self.address, device=self.device_address)

    async def _supervise(self) -> None:
        """Runs one process after the other, with growing pauses while they die young."""
        loop = asyncio.get_running_loop()
        deaths = 0
        while True:
            started = loop.time()
            try:
                await self._run_process()
            except OSError as error:
                log.error("a front end can't be started: %s", error)
            deaths = 0 if loop.time() - started > STARTED_WELL_S else deaths + 1
            pause = BACKOFF_S[min(deaths, len(BACKOFF_S)) - 1] if deaths else 0.0
            log.error("a front end died; starting another in %.2f s", pause)
            await asyncio.sleep(pause)

    async def _run_process(self) -> None:
        """Runs one front end until it is gone."""
        ours, theirs = socket.socketpair()
        arena = new_arena(self._sizes)
        try:
            memory = map_arena(arena, self._sizes)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._program,
                str(theirs.fileno()),
                str(arena),
                pass_fds=(theirs.fileno(), arena),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(arena)
        lost = asyncio.Event()

        def on_lost() -> None:
            lost.set()
            frontend.wake()

        def on_told(told: dict[str, Any]) -> None:
            frontend.note(told)
            self._news.set()
            self._news = asyncio.Event()

        link = Link(self._batcher, memory, on_told, on_lost, self._take)
        frontend = Frontend(link, process)
        joining: asyncio.Task[None] | None = None
        try:
            await asyncio.get_running_loop().create_connection(lambda: link.frames, sock=ours)
            link.frames.tell("start", config=portable(self._config), sizes=asdict(self._sizes))
            self._running.add(frontend)
            joining = asyncio.create_task(self._join(frontend), name="hotclip-frontend-join")
            self._joining.add(joining)
            joining.add_done_callback(self._joining.discard)
            await lost.wait()
        finally:
            self._running.discard(frontend)
            if joining is not None:
                joining.cancel()
            # The end of file ends it too.
            link.close()
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def portable(config: ServerConfig) -> dict[str, Any]:
    """What a front end needs of the configuration, as JSON."""
    plain = asdict(config)
    needed = plain.keys() - {"vectors_api_key"}
    return {n: v for n, v in plain.items() if n in needed and not isinstance(v, Path | None)}
