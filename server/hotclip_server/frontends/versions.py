"""Versions as a front end knows them: it pins them itself. Event loop only, no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hotclip_server.batching.ticket import Resident as Numbered
from hotclip_server.encoding.protocol import Encoder
from hotclip_server.models.directory import Directory, Selection
from hotclip_server.models.residents import Pin, Resident
from hotclip_server.models.state import ModelRow


@dataclass(frozen=True, slots=True)
class Known:
    """A version that need not be in memory."""

    model: str


class Announced:
    """Versions that the device process holds for this front end, by the numbers it gave them.

    Args:
        dropped: Called with the number of a version that is not needed here any more.
    """

    def __init__(self, dropped: Callable[[int], None]) -> None:
        self._dropped = dropped
        self._loaded: dict[int, Resident] = {}
        self._numbers: dict[Resident, int] = {}
        self._present: dict[str, Resident] = {}
        self._gone: set[int] = set()

    def __iter__(self) -> Iterator[Resident]:
        return iter(tuple(self._present.values()))

    def get(self, version_id: str) -> Resident | None:
        """The version if a new request may pin it."""
        return self._present.get(version_id)

    def number_of(self, resident: Numbered) -> int:
        """Its number."""
        if not isinstance(resident, Resident):
            raise TypeError("not a version of this front end")
        return self._numbers[resident]

    def numbered(self, number: int) -> Resident:
        """The version of a number."""
        return self._loaded[number]

    def add(self, number: int, resident: Resident) -> None:
        """Its items can be prepared from here on."""
        self._loaded[number] = resident
        self._numbers[resident] = number
        self.close_if_drained(resident)

    def replace(self, present: list[int], gone: list[int]) -> None:
        """Requests may pin these versions and not those any more."""
        self._present = {self._loaded[n].version_id: self._loaded[n] for n in present}
        self._gone.update(gone)
        for number in gone:
            if number in self._loaded:
                self.close_if_drained(self._loaded[number])

    def close_if_drained(self, resident: Resident) -> None:
        """See `PinOwner`: gives back a version that has gone and that no request pins."""
        number = self._numbers.get(resident)
        if number in self._gone and not resident.pins:
            self._gone.discard(number)
            del self._loaded[number], self._numbers[resident]
            resident.encoder.close()
            self._dropped(number)


class FrontVersions:
    """Pins versions as `ModelRegistry` does, and stops doing so while a flip is under way.

    Args:
        dropped: See `Announced`.
    """

    def __init__(self, dropped: Callable[[int], None]) -> None:
        self.announced = Announced(dropped)
        self._directory: Directory[Known] = Directory()
        self._live: dict[str, Resident] = {}
        self._selection = Selection(self._directory, self.announced, self._live)
        self._hold = 0
        self._released = 0
        self._free = asyncio.Event()
        self._free.set()

    def pin(
        self,
        model: str = "",
        version: str = "",
        expected_space_id: str = "",
        dimensions: int = 0,
    ) -> Pin:
        """See `ModelRegistry.pin`; only right after `admitted`, in the same turn of the loop."""
        return self._selection.pin(model, version, expected_space_id, dimensions)

    async def admitted(self) -> None:
        """Waits while requests are held."""
        while not self._free.is_set():
            await self._free.wait()

    def hold(self, number: int) -> None:
        """Admits nobody until the table that ends this hold."""
        self._hold = max(self._hold, number)
        self._free.clear()

    def add(self, number: int, model: str, version_id: str, encoder: Encoder) -> None:
        """A version whose items can be prepared."""
        resident = Resident(version_id=version_id, model=model, encoder=encoder)
        self.announced.add(number, resident)

    def apply(self, told: dict[str, Any]) -> None:
        """Takes in what is resident and live now; see `Frontends`."""
        self._directory.versions = {name: Known(model) for name, model in told["versions"]}
        self._directory.models = {
            name: ModelRow(name=name, live=live, previous=previous, etag="")
            for name, live, previous in told["models"]
        }
        self.announced.replace(told["present"], told["gone"])
        self._live.clear()
        self._live.update({m: self.announced.numbered(n) for m, n in told["live"].items()})
        self._released = max(self._released, told["release"])
        if self._released >= self._hold:
            self._free.set()
