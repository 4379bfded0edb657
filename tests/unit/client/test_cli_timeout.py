"""`--timeout` is the deadline of every call of every command, but for following a job."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from hotclip._cli.main import TIMEOUT_S, main, make_parser
from hotclip_proto.v1 import artifact_pb2, job_pb2, server_pb2
from tests.unit.client.test_cli_options import parsers

JOB = job_pb2.Job(
    id="j", name="j", state=job_pb2.JOB_STATE_SUCCEEDED, last_seq=1, artifacts=["a"]
).SerializeToString()
ANSWERS = {
    "GetServerInfo": server_pb2.GetServerInfoResponse(
        limits=server_pb2.Limits(max_items_per_request=8, max_message_bytes=1 << 20)
    ).SerializeToString(),
    "WatchJob": job_pb2.JobEvent(
        seq=1, state=job_pb2.StateEvent(state=job_pb2.JOB_STATE_SUCCEEDED)
    ).SerializeToString(),
    "GetArtifact": artifact_pb2.Artifact(
        id="a", size_bytes=1, sha256="00" * 32
    ).SerializeToString(),
    **dict.fromkeys(("GetJob", "Export", "FineTune", "Evaluate", "CompareVersions"), JOB),
    **dict.fromkeys(("FitBridge", "Reindex", "CancelJob", "ResumeJob"), JOB),
}
"""An empty message answers all other calls."""
REFUSED = {"Encode", "Search", "Download", "UploadDataset", "GetDataset"}
FOLLOWING = {"bridge fit", "drift", "evaluate", "export", "finetune", "jobs watch", "reindex"}

ROUNDED = 1.02
"""gRPC sends few digits of a time, rounded up."""
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)

COMMANDS = {
    "encode": "text",
    "search": "c q",
    "points": "c",
    "count": "c",
    "collections": "",
    "feedback record": "c q p",
    "feedback list": "c",
    "feedback dataset": "c",
    "feedback delete": "c",
    "info": "",
    "models": "",
    "versions": "",
    "version": "v",
    "activate": "v",
    "rollback": "",
    "unload": "v",
    "delete-version": "v",
    "drift": "v",
    "reindex": "c v",
    "drop-shadow": "c v",
    "bridge fit": "c v",
    "bridge show": "c",
    "bridge delete": "c",
    "shadow set": "v",
    "shadow show": "",
    "shadow clear": "",
    "backbones": "",
    "load": "source",
    "merge": "v w",
    "export": "v -o {folder}",
    "finetune": "data",
    "evaluate": "data",
    "datasets list": "",
    "datasets upload": "{folder}/pairs.csv",
    "datasets report": "d",
    "datasets delete": "d",
    "jobs list": "",
    "jobs show": "j",
    "jobs watch": "j",
    "jobs logs": "j",
    "jobs report": "j -o {folder}/j.html",
    "jobs cancel": "j",
    "jobs resume": "j",
    "jobs delete": "j",
}
LONGER = {
    "load": ("LoadVersion", 600),
    "activate": ("ActivateVersion", 600),
    "merge": ("MergeVersions", 600),
    "datasets upload": ("UploadDataset", 3600),
}


class Listener(grpc.GenericRpcHandler):
    """Answers any call, and notes how long its caller would wait."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self._lock = threading.Lock()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.rpartition("/")[2]

        def answer(requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            with self._lock:
                self.calls.append((method, context.time_remaining()))
            if method in REFUSED:
                context.abort(grpc.StatusCode.NOT_FOUND, "nothing is here")
            yield ANSWERS.get(method, b"")

        return grpc.stream_stream_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def listening() -> Iterator[tuple[Listener, str]]:
    listener = Listener()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((listener,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield listener, f"127.0.0.1:{port}"
    server.stop(None).wait()


def calls_of(
    listening: tuple[Listener, str], folder: Path, name: str, *options: str
) -> list[tuple[str, float]]:
    """What a command asks, and the seconds that each call had left."""
    (folder / "x.png").write_bytes(PNG)
    (folder / "pairs.csv").write_text("image,text\nx.png,a picture\n")
    listener, address = listening
    listener.calls.clear()
    words = [*name.split(), *COMMANDS[name].format(folder=folder).split()]
    main([*words, "-s", address, *options], environment={})
    assert listener.calls
    return list(listener.calls)


def test_every_command_is_here() -> None:
    found = {
        name.removeprefix("hotclip "): parser
        for name, parser in parsers(make_parser(), "hotclip")
        if parser.get_default("run")
    }
    assert set(found) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_it_is_of_every_call_but_of_following_a_job(
    name: str, listening: tuple[Listener, str], tmp_path: Path
) -> None:
    for method, left in calls_of(listening, tmp_path, name, "--timeout", "7"):
        if method == "WatchJob" and name in FOLLOWING:
            assert left > 1e6, method
        else:
            assert 0 < left <= 7 * ROUNDED, method


@pytest.mark.parametrize("name", sorted(LONGER))
def test_what_may_take_long_has_more_by_itself_and_says_so(
    name: str, listening: tuple[Listener, str], tmp_path: Path
) -> None:
    asked = dict(calls_of(listening, tmp_path, name))
    method, most = LONGER[name]
    assert TIMEOUT_S * ROUNDED < asked[method] <= most * ROUNDED
    assert f"{most}" in make_parser().format_help()


def test_by_default_a_call_has_a_minute(listening: tuple[Listener, str], tmp_path: Path) -> None:
    for method, left in calls_of(listening, tmp_path, "jobs cancel"):
        assert 50 < left <= TIMEOUT_S * ROUNDED, method


def test_data_that_a_job_begins_with_may_take_as_long_as_an_upload(
    listening: tuple[Listener, str], tmp_path: Path
) -> None:
    """As its help says: the time of one call is not that of reading and sending files."""
    listener, address = listening
    (tmp_path / "x.png").write_bytes(PNG)
    (tmp_path / "pairs.csv").write_text("image,text\nx.png,a picture\n")
    listener.calls.clear()
    main(["evaluate", str(tmp_path / "pairs.csv"), "-s", address, "--timeout", "7"], {})
    asked = dict(listener.calls)
    assert asked["GetDataset"] <= 7 * ROUNDED
    assert TIMEOUT_S * ROUNDED < asked["UploadDataset"] <= 3600 * ROUNDED
