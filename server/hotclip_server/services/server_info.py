"""hotclip.v1.ServerService."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from hotclip_proto.v1 import server_pb2, server_pb2_grpc, types_pb2
from hotclip_server.config import ServerConfig
from hotclip_server.encoding.protocol import Encoder, Tower
from hotclip_server.models.registry import ModelRegistry


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What the server runs on."""

    server_version: str
    device: str
    engine: str
    precision: str
    libraries: Mapping[str, str]


class ServerService(server_pb2_grpc.ServerServiceServicer):
    """Says what the server is and allows.

    Args:
        config: Limits in force.
        runtime: Device and libraries.
        versions: Gives the resident versions.
        measuring: Whether engines are being measured.
    """

    def __init__(
        self,
        config: ServerConfig,
        runtime: Runtime,
        versions: Callable[[], Iterable[server_pb2.VersionInfo]],
        measuring: Callable[[], bool],
    ) -> None:
        self._limits = limits_to_proto(config)
        self._runtime = runtime
        self._versions = versions
        self._measuring = measuring
        self._started = time.monotonic()

    async def GetServerInfo(  # noqa: N802 - named by the proto
        self, request: server_pb2.GetServerInfoRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> server_pb2.GetServerInfoResponse:
        """Device, limits, resident versions."""
        return server_pb2.GetServerInfoResponse(
            server_version=self._runtime.server_version,
            device=self._runtime.device,
            engine=self._runtime.engine,
            precision=self._runtime.precision,
            limits=self._limits,
            versions=self._versions(),
            libraries=self._runtime.libraries,
            uptime_s=time.monotonic() - self._started,
            measuring=self._measuring(),
        )


def limits_to_proto(config: ServerConfig) -> server_pb2.Limits:
    """The limits that clients should keep."""
    return server_pb2.Limits(
        max_message_bytes=config.max_message_bytes,
        max_items_per_request=config.max_items_per_request,
        max_text_bytes=config.max_text_bytes,
        max_image_bytes=config.max_image_bytes,
        max_image_pixels=config.max_image_pixels,
        max_queue_items=config.max_queue_items,
        max_queue_bytes=config.max_queue_bytes,
        max_stream_in_flight=config.max_stream_in_flight,
        max_dataset_bytes=config.max_dataset_bytes,
        max_collections=config.max_collections,
        max_payload_bytes=config.max_payload_bytes,
        max_artifact_bytes=config.max_artifact_bytes,
        max_feedback=config.max_feedback,
    )


def resident_versions(registry: ModelRegistry) -> Iterator[server_pb2.VersionInfo]:
    """Versions in memory."""
    for resident, live in registry:
        images = resident.encoder.image_preprocessing
        yield server_pb2.VersionInfo(
            model=resident.model,
            version=resident.version_id,
            space_id=resident.spec.space_id,
            dim=resident.spec.dim,
            image_size=resident.spec.image_size,
            live=live,
            image_preprocessing=types_pb2.ImagePreprocessing(**asdict(images), id=images.id),
            engines=[engine_info(resident.encoder, tower) for tower in Tower],
        )


def engine_info(encoder: Encoder, tower: Tower) -> server_pb2.EngineInfo:
    """What runs a tower."""
    engine, figures = encoder.engine(tower), encoder.figures(tower)
    return server_pb2.EngineInfo(
        tower=tower.value,
        engine=engine.engine,
        precision=engine.precision,
        best_batch=figures.best_batch if figures else 0,
        items_per_s=figures.items_per_s if figures else 0.0,
    )
