"""Models and their versions, as the caller sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from google.protobuf.json_format import MessageToDict

from hotclip._jobs import when
from hotclip._message import made
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import model_pb2


class VersionState(StrEnum):
    """Where a version is; its value is its name."""

    UNKNOWN = "UNKNOWN"
    STORED = "STORED"
    STAGED = "STAGED"
    LIVE = "LIVE"
    PREVIOUS = "PREVIOUS"
    BOUND = "BOUND"


_STATES = {
    model_pb2.VERSION_STATE_STORED: VersionState.STORED,
    model_pb2.VERSION_STATE_STAGED: VersionState.STAGED,
    model_pb2.VERSION_STATE_LIVE: VersionState.LIVE,
    model_pb2.VERSION_STATE_PREVIOUS: VersionState.PREVIOUS,
    model_pb2.VERSION_STATE_BOUND: VersionState.BOUND,
}


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What the job that made a version was told; it stays when the job is deleted."""

    job: str
    """Id."""
    datasets: Mapping[str, str]
    """Ids, which are content addresses, by use: "train", "replay", "eval", "query", "index"."""
    config: Mapping[str, Any]
    """All settings of the job; numbers are floats."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """Immutable weights of both towers with preprocessing, tokenizer and config."""

    id: str
    model: str
    state: VersionState
    parent: str
    """Version it was trained from; empty for a root."""
    source: str
    """What was loaded, or "job:<id>"."""
    architecture: str
    space_id: str
    text_encoder_id: str
    vision_encoder_id: str
    dim: int
    """Elements of a vector."""
    image_size: int
    """Pixels: height and width of the model's input."""
    context_length: int
    """Tokens: longest text."""
    size_bytes: int
    create_time: datetime | None
    metrics: Mapping[str, float]
    sha256: str
    lineage: Lineage | None
    """None: no job made it."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A named line of versions at one moment."""

    name: str
    live_version: str
    previous_version: str
    """What rollback returns to; empty if nothing."""
    staged_versions: tuple[str, ...]
    etag: str
    """Changes with every change of the model; give it to activate or rollback."""
    space_id: str
    """Space of the live version."""
    revision: int
    """Counts the changes of live_version and previous_version, without gaps."""
    change_time: datetime | None
    """When they last changed; None: never."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a version must have reached in a measurement before it goes live; every bound that
    is given must hold."""

    metric: str
    """As evaluations and Version.metrics name it, e.g. "monitor"."""
    dataset: str = ""
    """Id or name: the version's newest evaluation on it counts. Empty: what was measured when
    it was made."""
    at_least: float | None = None
    at_most: float | None = None
    live_margin: float | None = None
    """By how much it may be worse than the live version in an evaluation with the same settings;
    0: not at all. Needs dataset."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Published weights that are a good beginning; str() is a line for people."""

    source: str
    """What load_version takes."""
    description: str
    languages: str
    """Of the captions that it was trained on: "en" or "multilingual"."""
    license: str
    """Of the weights."""
    parameters: int
    """Numbers in both towers."""
    dim: int
    """Elements of a vector."""
    image_size: int
    """Pixels: height and width of the model's input."""
    context_length: int
    """Tokens: longest text."""

    def __str__(self) -> str:
        facts = f"{self.parameters / 1e6:,.0f} M, {self.dim} dims, {self.image_size} px"
        return f"{self.source} ({facts}, {self.languages}, {self.license}): {self.description}"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An open_clip architecture; load_version takes "<name>::<one of pretrained>"."""

    name: str
    pretrained: tuple[str, ...]
    """Tags of published weights."""
    dim: int
    """Elements of a vector."""
    image_size: int
    """Pixels: height and width of the model's input."""
    context_length: int
    """Tokens: longest text."""


def version(message: model_pb2.Version) -> Version:
    """Parses a version."""
    return Version(
        id=message.id,
        model=message.model,
        state=_STATES.get(message.state, VersionState.UNKNOWN),
        parent=message.parent,
        source=message.source,
        architecture=message.architecture,
        space_id=message.space_id,
        text_encoder_id=message.text_encoder_id,
        vision_encoder_id=message.vision_encoder_id,
        dim=message.dim,
        image_size=message.image_size,
        context_length=message.context_length,
        size_bytes=message.size_bytes,
        create_time=when(message.create_time),
        metrics={m.name: m.value for m in message.metrics},
        sha256=message.sha256,
        lineage=_lineage(message.lineage) if message.HasField("lineage") else None,
    )


def _lineage(message: model_pb2.Lineage) -> Lineage:
    return Lineage(
        job=message.job,
        datasets=dict(message.datasets),
        config=MessageToDict(message.config),
    )


def gate(wish: Gate) -> model_pb2.MetricGate:
    """As the wire has it."""
    return made(
        model_pb2.MetricGate,
        metric=wish.metric,
        dataset=wish.dataset,
        at_least=wish.at_least,
        at_most=wish.at_most,
        live_margin=wish.live_margin,
    )


def backbone(message: model_pb2.Backbone) -> Backbone:
    """Parses a backbone."""
    return Backbone(
        source=message.source,
        description=message.description,
        languages=message.languages,
        license=message.license,
        parameters=message.parameters,
        dim=message.dim,
        image_size=message.image_size,
        context_length=message.context_length,
    )


def architecture(message: model_pb2.Architecture) -> Architecture:
    """Parses an architecture."""
    return Architecture(
        name=message.name,
        pretrained=tuple(message.pretrained),
        dim=message.dim,
        image_size=message.image_size,
        context_length=message.context_length,
    )


def merge_request(versions: Sequence[str], alpha: float | None) -> model_pb2.MergeVersionsRequest:
    """Of two versions and alpha, or of several.

    Raises:
        InvalidArgument: Alpha and not two versions, or a str.
    """
    if isinstance(versions, str):
        raise InvalidArgument.field("versions", "a str; give a list of ids")
    if alpha is None:
        return made(model_pb2.MergeVersionsRequest, versions=versions)
    if len(versions) != 2:
        raise InvalidArgument.field("versions", f"alpha is between 2, not {len(versions)}")
    base, tuned = versions
    return made(model_pb2.MergeVersionsRequest, base_version=base, tuned_version=tuned, alpha=alpha)


def model(message: model_pb2.Model) -> Model:
    """Parses a model."""
    return Model(
        name=message.name,
        live_version=message.live_version,
        previous_version=message.previous_version,
        staged_versions=tuple(message.staged_versions),
        etag=message.etag,
        space_id=message.space_id,
        revision=message.revision,
        change_time=when(message.change_time),
    )
