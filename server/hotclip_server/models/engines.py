"""Which engine runs each tower of each version: the fastest that gives the same embeddings.

An architecture is measured once a machine, in the background while plain open_clip answers;
what was found is remembered, and every later version of that architecture gets it as soon as
its own weights have passed the probes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hotclip_server.encoding.engines.choices import AUTO, EngineWish, candidates
from hotclip_server.encoding.engines.protocol import EAGER, Engine, EngineChoice
from hotclip_server.encoding.engines.remembered import EngineMemory, Ranked
from hotclip_server.encoding.protocol import Encoder, Tower
from hotclip_server.models.engine_trial import (
    BuildEngine,
    EngineHost,
    HostClosed,
    Items,
    Trial,
)
from hotclip_server.models.trials import Pieces

log = logging.getLogger(__name__)

LARGEST_BATCH = {"cpu": 64, "cuda": 256}
"""Items of the largest batch that is measured."""
RACE_S = 0.15
"""Seconds of a batch that engines are compared on, if one item does not take longer."""
RACE_ITEMS = 8
SLOW_TO_MAKE = ("onnx",)
"""Engines whose graph is exported for minutes: unless asked for, they are only tried where no
other takes the place of plain open_clip."""
WORTH = 0.9
"""Part of fp32's time that a lower precision must not exceed, or exactness is given up for
nothing."""
WORDS = (10, 4, 24, 70)
"""Of the texts that are timed, the typical one first."""


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """Towers of a version that run plain open_clip until they are measured."""

    version: str
    host: EngineHost
    towers: tuple[Tower, ...]


class EngineSelector:
    """Gives every loaded version its engines; `start` begins to measure.

    Args:
        build: Makes engines.
        pieces: The device, between batches.
        memory: What was measured before.
        wish: What the configuration asks for.
        device: E.g. "cpu" or "cuda:0".
        first_after_s: Seconds after the start in which nothing is measured: the first answers
            of a fresh server have the machine for themselves.
    """

    def __init__(
        self,
        build: BuildEngine,
        pieces: Pieces,
        memory: EngineMemory,
        wish: EngineWish,
        device: str,
        first_after_s: float = 1.0,
    ) -> None:
        self._build, self._pieces, self._memory = build, pieces, memory
        self._wish, self._device = wish, device
        self._first_after_s = first_after_s
        self._waiting: deque[Unmeasured] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.measuring = 0
        """Versions that run plain open_clip until they are measured."""

    def start(self) -> None:
        """Starts to measure what was loaded and is not known."""
        self._task = asyncio.get_running_loop().create_task(self._work(), name="hotclip-engines")

    async def stop(self) -> None:
        """Stops measuring; what is in place stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def fit(self, version: str, encoder: Encoder) -> Unmeasured | None:
        """Puts remembered engines in place before a version serves.

        Returns:
            What `measure` is to be given as soon as the version may serve; None: all is known.
        """
        if not isinstance(encoder, EngineHost):
            return None
        unknown = []
        for tower in Tower:
            ranking = await asyncio.to_thread(
                self._memory.ranking, encoder.shape, tower, self._wish
            )
            if ranking is None:
                unknown.append(tower)
            else:
                async with self._trial(version, encoder, tower) as trial:
                    await self._take_first_fit(trial, ranking)
        if unknown:
            return Unmeasured(version, encoder, tuple(unknown))
        await asyncio.to_thread(encoder.release_model)
        return None

    def measure(self, unmeasured: Unmeasured) -> None:
        """Measures it when its turn comes."""
        self.measuring += 1
        self._waiting.append(unmeasured)
        self._arrived.set()

    async def _work(self) -> None:
        await asyncio.sleep(self._first_after_s)
        while True:
            await self._arrived.wait()
            while self._waiting:
                waiting = self._waiting.popleft()
                try:
                    await self._measure_version(waiting)
                except HostClosed:
                    log.info("version %s was closed before it was measured", waiting.version)
                except Exception:
                    # What serves goes on as it is; the next start tries again.
                    log.exception("measuring version %s failed", waiting.version)
                finally:
                    self.measuring -= 1
            self._arrived.clear()

    async def _measure_version(self, waiting: Unmeasured) -> None:
        for tower in waiting.towers:
            # Another version of the same architecture may have been measured meanwhile.
            ranking = self._memory.ranking(waiting.host.shape, tower, self._wish)
            async with self._trial(waiting.version, waiting.host, tower) as trial:
                if ranking is None:
                    await self._measure(trial)
                else:
                    await self._take_first_fit(trial, ranking)
        await asyncio.to_thread(waiting.host.release_model)

    def _trial(self, version: str, host: EngineHost, tower: Tower) -> Trial:
        return Trial(version, host, tower, self._build, self._pieces, self._memory)

    async def _take_first_fit(self, trial: Trial, ranking: Sequence[Ranked]) -> None:
        """Installs the fastest known engine that this version's weights pass on."""
        for ranked in ranking:
            if ranked.choice == EAGER:
                await trial.install(None, ranked.figures)
                return
            if trial.known_to_fail(ranked.choice):
                continue
            engine = await trial.build(ranked.choice)
            if engine is None:
                continue
            if await trial.passes(ranked.choice, engine):
                await trial.install(engine, ranked.figures)
                return
            await trial.close(engine)

    async def _measure(self, trial: Trial) -> None:
        """Races every candidate against the fastest that may serve, and installs that one."""
        # A wish that plain open_clip does not meet is no race against it.
        wished = _meets(EAGER, self._wish)
        champion, best = EAGER, await trial.build(EAGER)
        if best is None:
            raise HostClosed
        # Of one item, and as if all had run in one race: what a race takes on a machine that is
        # busy at the moment is compared with nothing but the champion in that race.
        seconds: dict[EngineChoice, float] = {}
        items = await self._race_items(best, await trial.items())
        for choice in candidates(self._wish, self._device):
            if self._wish.engine == AUTO and choice.engine in SLOW_TO_MAKE and champion != EAGER:
                continue
            engine = await trial.build(choice)
            if engine is None:
                continue
            fit = await trial.passes(choice, engine)
            if fit is None:
                await trial.close(engine)
                continue
            theirs, its = await self._pieces.race((best, engine), items)
            seconds[choice] = its / theirs * seconds.setdefault(champion, theirs / len(items))
            free = champion == EAGER and not wished
            faster = seconds[choice] < seconds[champion] * _handicap(choice, champion)
            if fit and (free or faster):
                await trial.close(best)
                champion, best = choice, engine
            else:
                await trial.close(engine)
        kind = self._device.partition(":")[0]
        figures = await self._pieces.figures(
            best, await trial.timed_items(WORDS), LARGEST_BATCH.get(kind, 64)
        )
        seconds.setdefault(EAGER, float("inf"))
        ranking = [
            Ranked(choice=choice, figures=figures if choice == champion else None)
            for choice in sorted(
                seconds,
                key=lambda choice: (
                    choice == EAGER and not wished,
                    seconds[choice] / _handicap(choice, EAGER),
                ),
            )
        ]
        await trial.install(None if champion == EAGER else best, figures)
        if trial.settled:
            await trial.remember(self._wish, ranking)
        log.info(
            "%s runs %s: %.1f items/s, best batch %d (%s)",
            champion,
            trial.name,
            figures.items_per_s,
            figures.best_batch,
            ", ".join(f"{choice} {1e3 * s:.2f} ms" for choice, s in seconds.items()),
        )

    async def _race_items(self, engine: Engine, items: Items) -> Items:
        one = min(await self._pieces.race((engine,), items[:1]))
        return items[: max(1, min(RACE_ITEMS, int(RACE_S / max(one, 1e-6))))]


def _meets(choice: EngineChoice, wish: EngineWish) -> bool:
    return wish.engine in (AUTO, choice.engine) and wish.precision in (AUTO, choice.precision)


def _handicap(challenger: EngineChoice, champion: EngineChoice) -> float:
    """Part of the champion's time that a challenger must stay below."""
    exact = (challenger.precision == "fp32", champion.precision == "fp32")
    return WORTH if exact == (False, True) else 1 / WORTH if exact == (True, False) else 1.0
