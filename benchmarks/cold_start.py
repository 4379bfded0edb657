"""How long a server takes from nothing to its first answer, beside what importing torch takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import grpc

from benchmarks.figures import Figure
from benchmarks.server_process import CHANNEL_OPTIONS, serves, started_server
from benchmarks.settings import Settings
from hotclip_proto.v1 import encode_pb2_grpc
from hotclip_proto.v1.encode_pb2 import EncodeRequest
from hotclip_proto.v1.types_pb2 import EncodeItem

TIMES = 5
PAUSE_S = 0.005
PATIENCE_S = 120.0


def measure_cold_start(settings: Settings, folder: Path) -> Figure:
    """The median over starts with an empty data directory; imports of torch go in turn."""
    times = 1 if settings.quick else TIMES
    starts, imports = [], []
    for turn in range(times):
        imports.append(_import_torch_s())
        starts.append(_first_answer_s(settings, folder / f"start-{turn}"))
    added = [start - own for start, own in zip(starts, imports, strict=True)]
    return Figure(
        name="cold_start_s.mini",
        value=statistics.median(added),
        unit="s",
        baseline=statistics.median(imports),
    )


def _import_torch_s() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def _first_answer_s(settings: Settings, data_dir: Path) -> float:
    request = EncodeRequest(items=[EncodeItem(text="a photo of a red fox")])
    options = ("--model", "builtin:mini", "--device", settings.device, *settings.server_options)
    began = time.perf_counter()
    with (
        started_server(data_dir, *options, program=settings.program) as (address, process),
        grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel,
    ):
        while not serves(channel):
            late = time.perf_counter() - began > PATIENCE_S
            if late or process.poll() is not None:
                end = (data_dir / "server.log").read_text(encoding="utf-8")[-4000:]
                raise RuntimeError(f"the server does not serve:\n{end}")
            time.sleep(PAUSE_S)
        encode_pb2_grpc.EncodeServiceStub(channel).Encode(request, timeout=PATIENCE_S)
        return time.perf_counter() - began
