"""Shadow traffic: some requests also run on a version that is not live, off their path.

A request is answered first; then a copy may be taken. Copies wait in one short line and run one
after the other, in small pieces, at bulk priority and with a deadline: whatever a request does
goes before, a request waits for one small piece at most, and a copy that can't run soon is
dropped and counted. So a request is never delayed by more than a piece, and never fails.

A flip that makes another version live ends it: nothing would be copied any more. State is in
memory: a restart ends it too.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Protocol

from sqlalchemy import Connection

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.batching.ticket import Priority
from hotclip_server.drift.pieces import pieces_of, tower_of
from hotclip_server.drift.shadow import (
    BUSY,
    CLEARED,
    ENDED,
    EXPIRED,
    LATE,
    MOST_ITEMS,
    NOT_LIVE,
    PRESSURE,
    REPLACED,
    TOO_LARGE,
    UNLOADED,
    Shadow,
    holder_of,
)
from hotclip_server.drift.shift import cosines
from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.protocol import Truncate
from hotclip_server.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from hotclip_server.models.background import Background
from hotclip_server.models.residents import Pin, Resident
from hotclip_server.models.state import ModelState
from hotclip_server.pipeline import Encoded
from hotclip_server.storage.database import now

_log = logging.getLogger(__name__)

MOST_WAITING = 8
"""Copies in line."""
MOST_BYTES = 16 << 20
"""Of all copies in line."""
PATIENCE_S = 2.0
"""How long a piece may wait for requests."""
HEADROOM_S = 0.05
"""Predicted work that waits, from which on no copy is taken."""
LIFETIME_S = (1.0, 7 * 24 * 3600.0)
DEFAULT_LIFETIME_S = 3600.0


class Versions(Protocol):
    """The part of `ModelRegistry` that is used; see there."""

    def pin(self, model: str = "", version: str = "") -> Pin:
        """Holds a resident version."""

    async def bind(self, version_id: str, holder: str) -> Resident:
        """Makes a version resident for `holder`."""

    def release(self, version_id: str, holder: str) -> None:
        """Ends `bind`."""

    def model_state(self, model: str = "") -> ModelState:
        """A model as it is now."""


class Pipeline(Protocol):
    """The part of `EncodePipeline` that is used; see there."""

    async def encode_items(
        self,
        items: Sequence[EncodeItem],
        pin: Pin,
        *,
        deadline: float | None = None,
        priority: Priority = Priority.INTERACTIVE,
        truncate: Truncate = Truncate.END,
        remember: bool = True,
    ) -> Encoded:
        """Encodes items with one version."""


@dataclass(frozen=True)
class _Copy:
    """An answered request."""

    shadow: Shadow
    items: list[EncodeItem]
    answer: Encoded
    """Rows belong to the items."""
    truncate: Truncate
    size: int


class ShadowTraffic:
    """Event loop only.

    Args:
        pressure_s: Predicted seconds of what waits for the device.
        draw: Gives numbers in [0, 1).
    """

    def __init__(
        self,
        versions: Versions,
        pipeline: Pipeline,
        pressure_s: Callable[[], float],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._versions = versions
        self._pipeline = pipeline
        self._pressure_s = pressure_s
        self._draw = draw
        self._shadows: dict[str, Shadow] = {}
        self._active: dict[str, Shadow] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._line: deque[_Copy] = deque()
        self._bytes = 0
        self._worker: asyncio.Task[None] | None = None
        self._background = Background()
        self.changed: Callable[[], None] = lambda: None
        """Called when `shares` are other ones."""

    async def set(
        self, model: str, version: str, *, share: float, lifetime_s: float = DEFAULT_LIFETIME_S
    ) -> Shadow:
        """Begins to copy requests of a model; ends what was set before.

        Raises:
            InvalidArgument: share, lifetime_s, or the version is the live one.
            NotFound: no such model or version.
            FailedPrecondition: no live version; reason NO_LIVE_VERSION.
            HotclipError: what `ModelRegistry.bind` raises.
        """
        if not 0.0 < share <= 1.0:
            raise InvalidArgument.field("share", f"{share} is not above 0 and at most 1")
        if not LIFETIME_S[0] <= lifetime_s <= LIFETIME_S[1]:
            problem = f"must be {LIFETIME_S[0]:.0f} to {LIFETIME_S[1]:.0f}"
            raise InvalidArgument.field("lifetime_s", problem)
        # To its end, if the caller goes: nobody else would release the version that it binds.
        return await self._background.uninterrupted(self._set(model, version, share, lifetime_s))

    async def _set(self, model: str, version: str, share: float, lifetime_s: float) -> Shadow:
        name = self._versions.model_state(model).name
        self._base(name, version)
        holder = holder_of(name)
        resident = await self._versions.bind(version, holder)
        before = self._active.get(name)
        try:
            if resident.model != name:
                problem = f"version {version} is of model {resident.model!r}, not {name!r}"
                raise InvalidArgument.field("version", problem)
            base = self._base(name, version)  # Perhaps another one by now.
        except HotclipError:
            if before is None or before.version != version:
                self._versions.release(version, holder)
            raise
        began = now()
        shadow = Shadow(
            model=name,
            version=version,
            base_version=base,
            share=share,
            create_time=began,
            expire_time=began + timedelta(seconds=lifetime_s),
        )
        self._shadows[name] = self._active[name] = shadow
        if before is not None:
            self._end(before, REPLACED)
            self._timers[name].cancel()
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(lifetime_s, self._end, shadow, EXPIRED)
        self.changed()
        return shadow

    def _base(self, name: str, version: str) -> str:
        """The live version, which must be there and another one."""
        live = self._versions.model_state(name).live_version
        if not live:
            raise FailedPrecondition(
                f"model {name!r} has no live version", reason="NO_LIVE_VERSION"
            )
        if live == version:
            raise InvalidArgument.field("version", "is live: it answers already")
        return live

    def get(self, model: str) -> Shadow:
        """What goes on, or what was last. Raises NotFound; reason NO_SHADOW_TRAFFIC."""
        name = self._versions.model_state(model).name
        if name not in self._shadows:
            raise NotFound(
                f"model {name!r} has had no shadow traffic since the server started",
                reason="NO_SHADOW_TRAFFIC",
            )
        return self._shadows[name]

    def clear(self, model: str) -> Shadow:
        """Ends it, if it goes on. Raises NotFound as `get`."""
        shadow = self.get(model)
        self._end(shadow, CLEARED)
        return shadow

    async def stop(self) -> None:
        """Drops what is in line; before the batcher stops."""
        for timer in self._timers.values():
            timer.cancel()
        self._active.clear()
        self._line.clear()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])

    def flip(
        self,
        connection: Connection,
        model: str,
        old_version: str,
        new_version: str,
        collections: Sequence[str],
    ) -> Callable[[], None]:
        """Ends what compares with a version that is not live any more; see
        models.flip.FlipParticipant. A rollback does not begin it again."""
        return partial(self._flipped, model, new_version)

    def release(self, connection: Connection, model: str, version: str) -> Callable[[], None]:
        """Keeps nothing for a rollback."""
        return _nothing

    def _flipped(self, model: str, live: str) -> None:
        shadow = self._active.get(model)
        if shadow is not None and shadow.base_version != live:
            _log.info(
                "shadow traffic of model %s to version %s ends: version %s, which it is compared "
                "with, is not live any more",
                model,
                shadow.version,
                shadow.base_version,
            )
            self._end(shadow, NOT_LIVE)

    def offer(
        self,
        resident: Resident,
        items: Sequence[EncodeItem],
        answer: Encoded,
        truncate: Truncate,
    ) -> Callable[[], None] | None:
        """Draws whether a request that is about to be answered is copied; see `Witness`."""
        shadow = self._active.get(resident.model)
        if shadow is None or resident.version_id != shadow.base_version:
            return None
        shadow.requests += 1
        if self._draw() >= shadow.share:
            return None
        return partial(self._take, shadow, list(items[:MOST_ITEMS]), answer, truncate)

    def drawn(
        self,
        model: str,
        version_id: str,
        requests: int,
        items: Sequence[EncodeItem],
        answer: Encoded,
        truncate: Truncate,
    ) -> None:
        """Takes a copy that a front end drew of `requests` requests; without items it was too
        large to be handed over."""
        shadow = self._active.get(model)
        if shadow is None or version_id != shadow.base_version:
            return
        shadow.requests += requests
        if items:
            self._take(shadow, list(items), answer, truncate)
        else:
            shadow.copied += 1
            shadow.dropped[TOO_LARGE] += 1

    def shares(self) -> list[tuple[str, str, float]]:
        """Of what requests are copied: model, version that answers, share."""
        return [(s.model, s.base_version, s.share) for s in self._active.values()]

    def _take(
        self, shadow: Shadow, items: list[EncodeItem], answer: Encoded, truncate: Truncate
    ) -> None:
        shadow.copied += 1
        size = sum(item.ByteSize() for item in items)
        if self._active.get(shadow.model) is not shadow:  # It has ended since it was drawn.
            shadow.dropped[ENDED] += 1
        elif len(self._line) >= MOST_WAITING or self._bytes + size > MOST_BYTES:
            shadow.dropped[BUSY] += 1
        elif self._pressure_s() > HEADROOM_S:
            shadow.dropped[PRESSURE] += 1
        else:
            self._bytes += size
            self._line.append(_Copy(shadow, items, answer, truncate, size))
            if self._worker is None or self._worker.done():
                self._worker = asyncio.get_running_loop().create_task(self._work())

    async def _work(self) -> None:
        while self._line:
            copy = self._line.popleft()
            self._bytes -= copy.size
            if copy.shadow.end_reason:
                copy.shadow.dropped[ENDED] += 1
                continue
            try:
                await self._run(copy)
            except (Unavailable, DeadlineExceeded):
                copy.shadow.dropped[LATE] += 1
            except (NotFound, FailedPrecondition) as error:
                # The version went away: nothing can be compared any more.
                _log.warning("shadow traffic of model %s ends: %s", copy.shadow.model, error)
                copy.shadow.dropped[error.reason] += 1
                self._end(copy.shadow, UNLOADED)
            except HotclipError as error:
                copy.shadow.dropped[error.reason] += 1
            except Exception:  # noqa: BLE001 - the next copy must run; the log has the traceback
                _log.exception("a copy of a request broke. This is a bug.")
                copy.shadow.dropped["INTERNAL"] += 1

    async def _run(self, copy: _Copy) -> None:
        shadow, answer = copy.shadow, copy.answer
        compute_us = 0
        with self._versions.pin(shadow.model, shadow.version) as pin:
            for part in pieces_of(copy.items):
                encoded = await self._pipeline.encode_items(
                    [copy.items[at] for at in part],
                    pin,
                    deadline=time.monotonic() + PATIENCE_S,
                    priority=Priority.BULK,
                    truncate=copy.truncate,
                    remember=False,
                )
                compute_us += encoded.compute_us
                self._compare(shadow, copy, part, encoded)
        shadow.compared += 1
        if answer.compute_us and len(answer.vectors) == len(copy.items):
            shadow.live_us.add(answer.compute_us)
            shadow.shadow_us.add(compute_us)

    def _compare(self, shadow: Shadow, copy: _Copy, part: Sequence[int], made: Encoded) -> None:
        good = []
        for which, at in enumerate(part):
            if which in made.errors and at not in copy.answer.errors:
                shadow.failed[made.errors[which].reason] += 1
            elif which not in made.errors and at not in copy.answer.errors:
                good.append((which, at))
        old = copy.answer.vectors[[at for _, at in good]]
        new = made.vectors[[which for which, _ in good]]
        if not good or old.shape != new.shape:
            return
        tower = tower_of(copy.items[part[0]])
        # Raw features are not of unit length.
        for value in cosines(unit_rows(old), unit_rows(new)):
            shadow.cosines[tower].add(float(value))

    def _end(self, shadow: Shadow, reason: str) -> None:
        if shadow.end_reason:
            return
        shadow.end_reason = reason
        current = self._active.get(shadow.model)
        if current is shadow:
            del self._active[shadow.model]
            if timer := self._timers.pop(shadow.model, None):
                timer.cancel()
        if current is shadow or current is None or current.version != shadow.version:
            self._versions.release(shadow.version, holder_of(shadow.model))
        self.changed()


def _nothing() -> None:
    """Nothing was kept."""
