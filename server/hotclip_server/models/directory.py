"""Which models and versions there are, and which of them a request gets. No database here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from hotclip_server.encoding.spaces import truncated
from hotclip_server.errors import FailedPrecondition, NotFound, Unavailable
from hotclip_server.models import naming
from hotclip_server.models.residents import Pin, PinOwner, Resident
from hotclip_server.models.state import ModelRow


class KnownVersion(Protocol):
    """What must be known of a version that is not in memory."""

    @property
    def model(self) -> str:
        """The model that it is of."""


V = TypeVar("V", bound=KnownVersion)


class Present(PinOwner, Protocol):
    """Versions in memory."""

    def get(self, version_id: str) -> Resident | None:
        """The version if a new request may pin it."""

    def __iter__(self) -> Iterator[Resident]:
        """All of them."""


class Directory(Generic[V]):
    """Models and versions by name."""

    def __init__(self) -> None:
        self.versions: dict[str, V] = {}
        self.models: dict[str, ModelRow] = {}

    def version(self, version_id: str) -> V:
        """Raises NotFound with reason VERSION_NOT_FOUND."""
        if (record := self.versions.get(version_id)) is None:
            raise NotFound(f"there is no version {version_id!r}", reason="VERSION_NOT_FOUND")
        return record

    def model(self, name: str) -> ModelRow:
        """Raises NotFound with reason MODEL_NOT_FOUND."""
        if (row := self.models.get(name)) is None:
            raise NotFound(f"there is no model {name!r}", reason="MODEL_NOT_FOUND")
        return row

    def of_model(self, model: str, version_id: str) -> V:
        """A version that must be one of this model's; NotFound otherwise."""
        record = self.version(version_id)
        if record.model != model:
            raise NotFound(
                f"version {version_id!r} is not of model {model!r}", reason="VERSION_NOT_FOUND"
            )
        return record


class Selection(Generic[V]):
    """Picks the version of a request; event loop only.

    Args:
        directory: What there is.
        residents: What is in memory.
        live: By model; changes while it is used.
    """

    def __init__(
        self, directory: Directory[V], residents: Present, live: Mapping[str, Resident]
    ) -> None:
        self._directory = directory
        self._residents = residents
        self._live = live

    def pin(self, model: str, version: str, expected_space_id: str, dimensions: int) -> Pin:
        """See `ModelRegistry.pin`."""
        if version and not model:
            model = self._directory.version(version).model
        resident = self.select(model or naming.DEFAULT_MODEL, version)
        if expected_space_id:
            resident = self._of_space(resident, expected_space_id, dimensions, bool(version))
        return Pin(self._residents, resident)

    def select(self, model: str, version: str) -> Resident:
        """The version that a new request gets: a resident one by id, or the live one."""
        if not version:
            if (live := self._live.get(model)) is not None:
                return live
            if not self._directory.model(model).live:
                raise FailedPrecondition(
                    f"model {model!r} has no live version", reason="NO_LIVE_VERSION"
                )
            raise Unavailable(
                f"the live version of model {model!r} is not in memory: the server is starting, or "
                "could not load it then and has said why in its log",
                retry_after_s=1.0,
                reason="MODEL_NOT_READY",
            )
        resident = self._residents.get(version)
        if resident is not None and resident.model == model:
            return resident
        self._directory.of_model(model, version)
        raise FailedPrecondition(
            f"version {version} is not in memory", reason="VERSION_NOT_RESIDENT"
        )

    def _of_space(self, chosen: Resident, space_id: str, dimensions: int, alone: bool) -> Resident:
        """A resident version of a space: the chosen one, else the previous, else any.

        Args:
            dimensions: Elements of a vector of the space; 0: all.
            alone: No other version may take the place of the chosen one.

        Raises:
            InvalidArgument: there is none, and the chosen one gives fewer elements.
            FailedPrecondition: there is none; reason SPACE_MISMATCH.
        """
        others = [] if alone else [r for r in self._residents if r.model == chosen.model]
        previous = self._directory.model(chosen.model).previous
        for resident in [chosen, *sorted(others, key=lambda r: r.version_id != previous)]:
            enough = resident.spec.dim >= dimensions
            if enough and truncated(resident.spec, dimensions).space_id == space_id:
                return resident
        space = truncated(chosen.spec, dimensions).space_id
        raise FailedPrecondition(
            f"version {chosen.version_id} is of space {space}, the request expects {space_id}",
            reason="SPACE_MISMATCH",
            metadata={
                "space_id": space,
                "version": chosen.version_id,
                "expected_space_id": space_id,
            },
        )
