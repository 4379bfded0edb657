"""What search needs of the model registry and of the encode pipeline."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from hotclip_proto.v1.types_pb2 import EncodeItem
from hotclip_server.batching.ticket import Priority
from hotclip_server.models.residents import Pin, Resident
from hotclip_server.models.state import ModelState
from hotclip_server.pipeline import Encoded


class Versions(Protocol):
    """The part of `ModelRegistry` that search uses; see there."""

    def pin(self, model: str = "", version: str = "", expected_space_id: str = "") -> Pin:
        """Holds a resident version for one request."""

    async def bind(self, version_id: str, holder: str) -> Resident:
        """Makes a version resident for `holder`."""

    def retain(self, version_id: str, holder: str) -> None:
        """Keeps a resident version for `holder`."""

    def release(self, version_id: str, holder: str) -> None:
        """Ends `bind` or `retain`."""

    def model_state(self, model: str = "") -> ModelState:
        """A model as it is now."""

    def watch(self) -> AsyncGenerator[ModelState, None]:
        """Every model now, and after each change."""


class ItemEncoder(Protocol):
    """The part of `EncodePipeline` that search uses; see there."""

    async def encode_items(
        self,
        items: Sequence[EncodeItem],
        pin: Pin,
        *,
        deadline: float | None = None,
        priority: Priority = Priority.INTERACTIVE,
        field: str = "items",
    ) -> Encoded:
        """Encodes items with one version."""
