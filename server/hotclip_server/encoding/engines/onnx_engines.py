"""Makes engines of ONNX Runtime; imports it with the first."""

from __future__ import annotations

from pathlib import Path

from hotclip_server.encoding.engines.onnx_graphs import ExportProcess, OnnxGraphs
from hotclip_server.encoding.engines.protocol import Engine, EngineUnfit
from hotclip_server.encoding.engines.source import TowerSource

PRECISIONS = ("fp32", "int8")


class OnnxEngines:
    """Long-lived: `build` is what `EngineFactory` takes.

    Args:
        folder: Where graphs are kept.
        threads: Of one batch on the CPU; 0: one a core.
    """

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self._export = ExportProcess()
        self.graphs = OnnxGraphs(folder, self._export)
        self._threads = threads

    def build(self, source: TowerSource, precision: str) -> Engine:
        """Exports the architecture's graph if that was never done; blocks.

        Raises:
            EngineUnfit: it can't run this tower here.
            ExportEnded: its graph could not be exported now.
        """
        from hotclip_server.encoding.engines.onnx_engine import OnnxEngine, providers

        if precision not in PRECISIONS:
            raise EngineUnfit(f"computes in fp32 or int8, not in {precision}")
        if precision == "int8" and source.device.type != "cpu":
            raise EngineUnfit(f"computes in int8 on the CPU only, not on {source.device}")
        if source.folder is None:
            raise EngineUnfit("only a stored version can be exported")
        chosen = providers(source.device)  # before the export, which takes much longer
        graph = self.graphs.graph(source.folder, source.tower)
        return OnnxEngine(graph, source, precision, chosen, threads=self._threads)

    def stop(self) -> None:
        """Ends an export that runs."""
        self._export.stop()
