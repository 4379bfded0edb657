"""What writes versions as files. Imports torch when it is asked to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hotclip_server.artifacts.export import Exporter
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.config import ServerConfig

if TYPE_CHECKING:
    from hotclip_server.encoding.engines.onnx_engines import OnnxEngines
    from hotclip_server.encoding.engines.onnx_graphs import OnnxGraphs
    from hotclip_server.models.store import VersionStore


def make_exporter(
    config: ServerConfig, store: VersionStore, artifacts: ArtifactStore, onnx: OnnxEngines
) -> Exporter:
    """Of the versions of a store."""
    from hotclip_server.models.delta import write_delta

    return Exporter(
        store,
        artifacts,
        DeferredOnnxFiles(store, onnx.graphs),
        write_delta,
        min_free_disk_bytes=config.min_free_disk_bytes,
    )


class DeferredOnnxFiles:
    """Implements `OnnxWriter` by `OnnxFiles`, which imports onnx with the first export."""

    def __init__(self, store: VersionStore, graphs: OnnxGraphs) -> None:
        self._store, self._graphs = store, graphs

    def write(self, version_id: str, out: Path) -> Mapping[str, Path]:
        """See `OnnxWriter.write`."""
        from hotclip_server.encoding.engines.onnx_files import OnnxFiles

        return OnnxFiles(self._store, self._graphs).write(version_id, out)
