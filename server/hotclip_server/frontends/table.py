"""What front ends know of models and versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from hotclip_server.encoding.preprocessing import ImagePreprocessing
from hotclip_server.encoding.protocol import Encoder, EncoderSpec

if TYPE_CHECKING:
    from hotclip_server.models.registry import ModelRegistry


@runtime_checkable
class Portable(Protocol):
    """An encoder whose items another process can prepare."""

    @property
    def preparation(self) -> Mapping[str, Any]:
        """What that takes, as JSON."""


def facts_of(encoder: Encoder) -> dict[str, Any]:
    """What a front end must know of a version, as JSON.

    Raises:
        TypeError: its items can't be prepared in another process.
    """
    if not isinstance(encoder, Portable):
        raise TypeError(f"{type(encoder).__name__} can't prepare items in another process")
    return {
        "spec": asdict(encoder.spec),
        "images": asdict(encoder.image_preprocessing),
        "logit_scale": encoder.logit_scale,
        "preparation": dict(encoder.preparation),
    }


def spec_from(facts: Mapping[str, Any]) -> EncoderSpec:
    """The spec among the facts."""
    return EncoderSpec(**facts["spec"])


def images_from(facts: Mapping[str, Any]) -> ImagePreprocessing:
    """How an image becomes the input."""
    return ImagePreprocessing(**facts["images"])


def names_of(registry: ModelRegistry) -> dict[str, Any]:
    """All models and versions by name, resident or not, as JSON."""
    states = registry.list_models()
    return {
        "models": [[state.name, state.live_version, state.previous_version] for state in states],
        "versions": [
            [record.id, record.model]
            for state in states
            for record in registry.list_versions(state.name)
        ],
    }
