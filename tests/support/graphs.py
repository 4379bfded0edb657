"""ONNX graphs of the built-in model for servers that are not about exporting them."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.once import made_once
from support.server import start_server

from hotclip import Client

GRAPHS = "graphs"
EXPORT_S = 280


def know_graphs(data_dir: Path) -> None:
    """Gives a data directory the graphs that a server has exported: once a run, for exporting
    takes half a minute."""
    shutil.copytree(made_once(GRAPHS, export_graphs) / GRAPHS, data_dir / GRAPHS)


def export_graphs(folder: Path) -> None:
    """Has a server make an artifact of ONNX files, and keeps the graphs that it exported."""
    with (
        start_server(folder / "data", "--device", "cpu") as server,
        Client(server.address) as client,
    ):
        client.export(format="onnx").wait(EXPORT_S)
    shutil.copytree(folder / "data" / GRAPHS, folder / GRAPHS)
