"""A registry of one version."""

from __future__ import annotations

from collections.abc import Iterator

from hotclip_server.encoding.protocol import Encoder
from hotclip_server.errors import NotFound
from hotclip_server.models.residents import Pin, Resident, Residents


class OneVersion:
    """Serves one encoder as the live version of "default"."""

    def __init__(self, encoder: Encoder) -> None:
        self._residents = Residents(lambda resident: resident.encoder.close())
        self._resident = Resident(
            version_id=encoder.spec.space_id, model="default", encoder=encoder
        )
        self._residents.add(self._resident)

    async def start(self, model: str, source: str) -> None:
        """Has nothing to load."""

    async def stop(self) -> None:
        """Has nothing to stop."""

    def __iter__(self) -> Iterator[tuple[Resident, bool]]:
        yield self._resident, True

    def pin(self, model: str = "", version: str = "", expected_space_id: str = "") -> Pin:
        """Pins the one version."""
        if model not in ("", "default") or version not in ("", self._resident.version_id):
            raise NotFound(f"no model {model!r} or version {version!r}")
        return Pin(self._residents, self._resident)
