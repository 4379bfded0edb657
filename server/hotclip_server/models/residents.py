"""Versions in memory: who holds them, and when they may be closed. Event loop only.

A version stays while a slot or a holder wants it; after that it drains: nobody new can get
it, and the last request that pinned it closes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from hotclip_server.encoding.protocol import Encoder, EncoderSpec


@dataclass(eq=False, slots=True, kw_only=True)
class Resident:
    """A version in memory, warm and verified."""

    version_id: str
    model: str
    encoder: Encoder
    pins: int = 0
    """Requests that were admitted with this version and are not done."""
    holders: set[str] = field(default_factory=set)
    """Who keeps it for longer than a request, e.g. "collection:photos"."""

    @property
    def spec(self) -> EncoderSpec:
        """What it is."""
        return self.encoder.spec


class PinOwner(Protocol):
    """Where pinned versions are closed."""

    def close_if_drained(self, resident: Resident) -> None:
        """The last pin of a version was released."""


class Pin:
    """One request's hold on a version; a context manager. Released once, however often asked."""

    __slots__ = ("_owner", "_released", "resident")

    def __init__(self, owner: PinOwner, resident: Resident) -> None:
        self.resident = resident
        self._owner = owner
        self._released = False
        resident.pins += 1

    def release(self) -> None:
        """Ends the hold."""
        if not self._released:
            self._released = True
            self.resident.pins -= 1
            self._owner.close_if_drained(self.resident)

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Residents:
    """All resident versions of all models.

    Args:
        close: Called once with each version that nobody needs any more.
    """

    def __init__(self, close: Callable[[Resident], None]) -> None:
        self._close = close
        self._present: dict[str, Resident] = {}
        self._draining: set[Resident] = set()
        self._adoptable: dict[str, Resident] = {}
        """Those that are draining and may still be adopted."""

    def __iter__(self) -> Iterator[Resident]:
        return iter(tuple(self._present.values()))

    def get(self, version_id: str) -> Resident | None:
        """The version if a new request may pin it."""
        return self._present.get(version_id)

    def adopt(self, version_id: str) -> Resident | None:
        """Like `get`, but also takes back a version that is draining."""
        if (resident := self._adoptable.pop(version_id, None)) is not None:
            self._draining.discard(resident)
            self._present[version_id] = resident
        return self._present.get(version_id)

    def add(self, resident: Resident) -> None:
        """Makes a freshly loaded version available."""
        if resident.version_id in self._present:
            raise RuntimeError(f"{resident.version_id} is resident twice; this is a bug")
        self._present[resident.version_id] = resident

    def retire(self, resident: Resident) -> None:
        """Lets a version drain."""
        if self._present.pop(resident.version_id, None) is not None:
            self._draining.add(resident)
            self._adoptable[resident.version_id] = resident
            self.close_if_drained(resident)

    def discard(self, version_id: str) -> None:
        """Lets a version drain that is deleted: nobody gets it back."""
        if (resident := self._present.get(version_id)) is not None:
            self.retire(resident)
        self._adoptable.pop(version_id, None)

    def close_if_drained(self, resident: Resident) -> None:
        """Closes a retired version that no request pins."""
        if resident.pins == 0 and resident in self._draining:
            self._draining.discard(resident)
            if self._adoptable.get(resident.version_id) is resident:
                del self._adoptable[resident.version_id]
            self._close(resident)
