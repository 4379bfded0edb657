"""Graphs are exported once, kept whole, and made anew where they are damaged."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import onnx
import pytest
from support.small_models import write_model

from hotclip_server.encoding.engines import onnx_graphs
from hotclip_server.encoding.engines.onnx_graphs import ExportEnded, ExportProcess, OnnxGraphs
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.protocol import Tower


class Exporter:
    """Counts."""

    def __init__(self) -> None:
        self.made: list[tuple[str, Tower]] = []

    def __call__(self, version_folder: Path, tower: Tower, /) -> bytes:
        self.made.append((version_folder.name, tower))
        return f"graph {len(self.made)}".encode()


def version(folder: Path, name: str, config: str = "a") -> Path:
    made = folder / name
    made.mkdir()
    (made / "open_clip_config.json").write_text(config, "utf-8")
    return made


def test_one_graph_an_architecture_and_tower(tmp_path: Path) -> None:
    export = Exporter()
    first, tuned = version(tmp_path, "first"), version(tmp_path, "tuned")
    graphs = OnnxGraphs(tmp_path / "graphs", export)
    assert graphs.graph(first, Tower.TEXT) == graphs.graph(tuned, Tower.TEXT) == b"graph 1"
    assert graphs.graph(first, Tower.VISION) == b"graph 2"
    assert OnnxGraphs(tmp_path / "graphs", export).graph(tuned, Tower.TEXT) == b"graph 1"
    assert graphs.graph(version(tmp_path, "other", "b"), Tower.TEXT) == b"graph 3"
    (tuned / "config.json").write_text("{}", "utf-8")  # another text tower of Hugging Face
    assert graphs.graph(tuned, Tower.TEXT) == b"graph 4"


@pytest.mark.parametrize("damage", [b"", b"x" * 10, b"y" * 40])
def test_a_damaged_graph_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    export = Exporter()
    folder = version(tmp_path, "first")
    graphs = OnnxGraphs(tmp_path / "graphs", export)
    graphs.graph(folder, Tower.TEXT)
    (path,) = (tmp_path / "graphs").iterdir()
    path.write_bytes(damage)
    assert graphs.graph(folder, Tower.TEXT) == b"graph 2"
    assert graphs.graph(folder, Tower.TEXT) == b"graph 2"


def test_no_more_graphs_are_kept_than_are_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graphs, "MOST_GRAPHS", 2)
    graphs = OnnxGraphs(tmp_path / "graphs", Exporter())
    for number in range(4):
        graphs.graph(version(tmp_path, str(number), str(number)), Tower.TEXT)
        for path in (tmp_path / "graphs").iterdir():
            written = path.stat().st_mtime
            os.utime(path, (written - 10, written - 10))
    assert len(list((tmp_path / "graphs").iterdir())) == 2


def test_a_process_exports_from_the_configuration_alone(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "open_clip_model.safetensors").unlink()
    graph = onnx.load_from_string(ExportProcess()(folder, Tower.TEXT))
    assert [given.name for given in graph.graph.input] == ["ids"]
    assert [made.name for made in graph.graph.output] == ["features"]


def test_what_can_not_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineUnfit, match=r"status 1.*not an open_clip config"):
        ExportProcess()(version(tmp_path, "broken"), Tower.TEXT)


def test_an_export_ends_when_the_server_does(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    export = ExportProcess()
    ended: list[str] = []

    def run() -> None:
        try:
            export(folder, Tower.TEXT)
        except ExportEnded as error:
            ended.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    export.stop()
    thread.join(20)
    assert ended == ["exporting ended (status -9): no message"]


def test_an_export_that_takes_too_long_may_do_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graphs, "EXPORT_S", 0.01)
    with pytest.raises(ExportEnded, match="took more than"):
        ExportProcess()(write_model(tmp_path / "model"), Tower.TEXT)
