"""Whether an engine may serve one tower of one version: by its own weights, on 64 probes."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hotclip_server.encoding.engines.choices import EngineWish
from hotclip_server.encoding.engines.protocol import (
    EAGER,
    Engine,
    EngineChoice,
    EngineFigures,
    EngineUnfit,
    OverlappingEngine,
)
from hotclip_server.encoding.engines.remembered import EngineMemory, Ranked
from hotclip_server.encoding.protocol import Encoder, Tower
from hotclip_server.models import probe_inputs, probes
from hotclip_server.models.trials import Pieces

log = logging.getLogger(__name__)

Items = Sequence[NDArray[Any]]


@runtime_checkable
class EngineHost(Encoder, Protocol):
    """An encoder whose engines can be changed."""

    @property
    def shape(self) -> str:
        """What decides how fast it runs: equal for all versions of an architecture."""

    def source(self, tower: Tower) -> Any:
        """What engines are built from; None once it was closed or its model released."""

    def install(self, tower: Tower, engine: Engine, figures: EngineFigures | None) -> None:
        """Puts an engine in place and closes the one before; device thread only."""

    def note(self, tower: Tower, figures: EngineFigures | None) -> None:
        """Keeps what was measured of the engine in place."""

    def release_model(self) -> None:
        """Frees what only building needs."""


class BuildEngine(Protocol):
    """Makes an engine; blocks. Raises EngineUnfit."""

    def __call__(self, choice: EngineChoice, source: Any, /) -> Engine: ...


class HostClosed(Exception):
    """The version was closed: nobody needs its engines any more."""


class Trial:
    """Builds engines for one tower and compares them with plain open_clip; when it ends, it
    closes those that were not installed.

    Args:
        version: Id; verdicts are remembered by it.
    """

    def __init__(
        self,
        version: str,
        host: EngineHost,
        tower: Tower,
        build: BuildEngine,
        pieces: Pieces,
        memory: EngineMemory,
    ) -> None:
        self._version, self._host, self._tower = version, host, tower
        self._build, self._pieces, self._memory = build, pieces, memory
        self._items: Items | None = None
        self._reference: NDArray[np.float32] | None = None
        self._lock = threading.Lock()
        self._open: list[Engine] = []
        self._ended = False
        self.settled = True
        """Whether every engine that failed is one that can't run this tower at any time."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self._close_all))

    def _close_all(self) -> None:
        with self._lock:
            self._ended = True
            left, self._open = self._open, []
        for engine in left:
            engine.close()

    def _make(self, choice: EngineChoice, source: Any) -> Engine:
        engine = self._build(choice, source)
        with self._lock:
            # It may have ended while this thread was building.
            if not self._ended:
                self._open.append(engine)
                return engine
        engine.close()
        raise HostClosed

    def _let_go(self, engine: Engine) -> bool:
        with self._lock:
            mine = engine in self._open
            if mine:
                self._open.remove(engine)
        return mine

    async def close(self, engine: Engine) -> None:
        """Closes an engine that is not needed any more."""
        if self._let_go(engine):
            await asyncio.shield(asyncio.to_thread(engine.close))

    async def build(self, choice: EngineChoice) -> Engine | None:
        """None: it can't run this tower; the log says why.

        Raises:
            HostClosed: the version is gone.
        """
        source = self._host.source(self._tower)
        if source is None:
            raise HostClosed
        try:
            engine = await asyncio.to_thread(self._make, choice, source)
            if isinstance(engine, OverlappingEngine):
                try:
                    await self._pieces.warm_up(engine)
                except BaseException:
                    await self.close(engine)
                    raise
            return engine
        except EngineUnfit as error:
            log.info("%s does not run %s: %s", choice, self.name, error)
        except Exception:
            # Whatever a library raises about this engine, another serves.
            log.exception("%s can't be built for %s", choice, self.name)
            self.settled = False
        return None

    async def passes(self, choice: EngineChoice, engine: Engine) -> bool | None:
        """Whether it gives the reference's embeddings of 64 inputs; remembered. None: it can't
        run them now; the log says why."""
        verdict = self._memory.verdict(self._version, self._tower, choice)
        if verdict is not None:
            return verdict
        try:
            rows = await self._pieces.rows(engine, await self.items())
        except Exception:
            # As when it is built: whatever a library raises, another engine serves.
            log.exception("%s can't run %s", choice, self.name)
            self.settled = False
            return None
        found = probes.parity(await self._reference_rows(), rows)
        passed = found.holds_in(choice.precision)
        say = log.info if passed else log.warning
        say("%s on %s %s: %s", choice, self.name, "passes" if passed else "may not serve", found)
        await asyncio.to_thread(
            self._memory.remember_verdict, self._version, self._tower, choice, passed=passed
        )
        return passed

    def known_to_fail(self, choice: EngineChoice) -> bool:
        """Without building it."""
        return self._memory.verdict(self._version, self._tower, choice) is False

    async def install(self, engine: Engine | None, figures: EngineFigures | None) -> None:
        """Puts an engine in place between two batches; None: the reference stays."""
        if engine is None:
            self._host.note(self._tower, figures)
        else:
            await self._pieces.run(lambda: self._hand_over(engine, figures))

    def _hand_over(self, engine: Engine, figures: EngineFigures | None) -> None:
        if self._let_go(engine):
            self._host.install(self._tower, engine, figures)

    async def remember(self, wish: EngineWish, ranking: Sequence[Ranked]) -> None:
        """Keeps what was measured for every version of this architecture."""
        await asyncio.to_thread(
            self._memory.remember_ranking, self._host.shape, self._tower, wish, ranking
        )

    async def items(self) -> Items:
        """The probes, prepared."""
        if self._items is None:
            self._items = await asyncio.to_thread(self._prepare)
        return self._items

    def _prepare(self) -> Items:
        host = self._host
        if self._tower is Tower.TEXT:
            return [host.prepare_text(text).array for text in probe_inputs.texts()]
        return list(probe_inputs.images(host.spec.image_size))

    async def timed_items(self, words: Sequence[int]) -> list[Items]:
        """What is timed: some texts of each length, or images."""
        if self._tower is Tower.VISION:
            return [(await self.items())[:8]]
        texts = [self._host.prepare_text(" ".join(["photo"] * count)).array for count in words]
        of_length = {len(text): text for text in reversed(texts)}
        return [[text] for text in reversed(of_length.values())]

    async def _reference_rows(self) -> NDArray[np.float32]:
        if self._reference is None:
            eager = await self.build(EAGER)
            if eager is None:
                raise HostClosed
            self._reference = await self._pieces.rows(eager, await self.items())
            await self.close(eager)
        return self._reference

    @property
    def name(self) -> str:
        """For people."""
        return f"{self._tower.value} of version {self._version}"
