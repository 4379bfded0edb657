"""What writes versions as files. Imports torch when it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotclip_server.artifacts.export import Exporter
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.config import ServerConfig

if TYPE_CHECKING:
    from hotclip_server.encoding.engines.onnx_engines import OnnxEngines
    from hotclip_server.models.store import VersionStore


def make_exporter(
    config: ServerConfig, store: VersionStore, artifacts: ArtifactStore, onnx: OnnxEngines
) -> Exporter:
    """Of the versions of a store."""
    from hotclip_server.encoding.engines.onnx_files import OnnxFiles
    from hotclip_server.models.delta import write_delta

    return Exporter(
        store,
        artifacts,
        OnnxFiles(store, onnx.graphs),
        write_delta,
        min_free_disk_bytes=config.min_free_disk_bytes,
    )
