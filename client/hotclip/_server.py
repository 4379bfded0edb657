"""What a server is and allows, and how its health is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hotclip._resize import ImagePreprocessing
from hotclip_proto.v1 import server_pb2, types_pb2

# grpc.health.v1 by hand, which spares a dependency: an empty request asks for the whole
# server; field 1 (varint) of the reply is 1 when it is SERVING.
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_REQUEST = b""
SERVING = b"\x08\x01"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits that a server enforces; the client stays within them by splitting."""

    max_message_bytes: int = 16 << 20
    max_items_per_request: int = 1_024
    max_text_bytes: int = 8 << 10
    max_image_bytes: int = 20 << 20
    max_image_pixels: int = 50_000_000
    max_queue_items: int = 20_000
    max_queue_bytes: int = 512 << 20
    max_stream_in_flight: int = 16
    max_dataset_bytes: int = 10 << 30
    max_collections: int = 1_000
    max_payload_bytes: int = 64 << 10
    max_artifact_bytes: int = 10 << 30
    max_feedback: int = 1_000_000


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What runs one tower of a version."""

    tower: str
    """ "clip-text" or "clip-vision"."""
    engine: str
    precision: str
    """Of the products: "fp32", "bf16", "fp16", "int8"."""
    best_batch: int
    """Fewest items with at least 97 % of the best throughput; 0: not measured."""
    items_per_s: float
    """At that batch; 0: not measured."""


@dataclass(frozen=True, kw_only=True)
class VersionInfo:
    """A resident version in short."""

    model: str
    version: str
    space_id: str
    dim: int
    """Elements of a vector."""
    image_size: int
    """Pixels: height and width of the model's input."""
    live: bool
    image_preprocessing: ImagePreprocessing
    """How it makes its input of an image."""
    engines: tuple[EngineInfo, ...]


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What a server says of itself."""

    server_version: str
    device: str
    engine: str
    """What was asked for: "auto" or a name; each version says what runs it."""
    precision: str
    limits: Limits
    versions: tuple[VersionInfo, ...]
    libraries: Mapping[str, str]
    uptime_s: float
    measuring: bool
    """Whether some version runs plain open_clip only until its engines are measured."""


def server_info(reply: server_pb2.GetServerInfoResponse) -> ServerInfo:
    """Parses the answer of GetServerInfo."""
    return ServerInfo(
        server_version=reply.server_version,
        device=reply.device,
        engine=reply.engine,
        precision=reply.precision,
        limits=_limits(reply.limits),
        versions=tuple(
            VersionInfo(
                model=v.model,
                version=v.version,
                space_id=v.space_id,
                dim=v.dim,
                image_size=v.image_size,
                live=v.live,
                image_preprocessing=_preprocessing(v.image_preprocessing),
                engines=tuple(
                    EngineInfo(
                        tower=e.tower,
                        engine=e.engine,
                        precision=e.precision,
                        best_batch=e.best_batch,
                        items_per_s=e.items_per_s,
                    )
                    for e in v.engines
                ),
            )
            for v in reply.versions
        ),
        libraries=dict(reply.libraries),
        uptime_s=reply.uptime_s,
        measuring=reply.measuring,
    )


def _preprocessing(told: types_pb2.ImagePreprocessing) -> ImagePreprocessing:
    return ImagePreprocessing(
        id=told.id,
        height=told.height,
        width=told.width,
        resize_mode=told.resize_mode,
        interpolation=told.interpolation,
        fill_color=told.fill_color,
    )


def _limits(told: server_pb2.Limits) -> Limits:
    usual = Limits()  # a limit of 0 is one that the server does not tell
    return Limits(
        max_message_bytes=told.max_message_bytes or usual.max_message_bytes,
        max_items_per_request=told.max_items_per_request or usual.max_items_per_request,
        max_text_bytes=told.max_text_bytes or usual.max_text_bytes,
        max_image_bytes=told.max_image_bytes or usual.max_image_bytes,
        max_image_pixels=told.max_image_pixels or usual.max_image_pixels,
        max_queue_items=told.max_queue_items or usual.max_queue_items,
        max_queue_bytes=told.max_queue_bytes or usual.max_queue_bytes,
        max_stream_in_flight=told.max_stream_in_flight or usual.max_stream_in_flight,
        max_dataset_bytes=told.max_dataset_bytes or usual.max_dataset_bytes,
        max_collections=told.max_collections or usual.max_collections,
        max_payload_bytes=told.max_payload_bytes or usual.max_payload_bytes,
        max_artifact_bytes=told.max_artifact_bytes or usual.max_artifact_bytes,
        max_feedback=told.max_feedback or usual.max_feedback,
    )
