"""How a server process starts, refuses to start, and ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.server import spawn_server

from hotclip_proto.v1 import encode_pb2, encode_pb2_grpc, types_pb2


def texts(*contents: str) -> encode_pb2.EncodeRequest:
    return encode_pb2.EncodeRequest(items=[types_pb2.EncodeItem(text=text) for text in contents])


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hotclip_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help():
    done = run("--help")
    assert done.returncode == 0
    assert "--max-queue-items" in done.stdout


def test_another_host_than_loopback_is_refused(tmp_path: Path):
    done = run("--host", "0.0.0.0", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert "--insecure" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = spawn_server(tmp_path / "data", "--device", "cpu", "--port", str(port))
        assert server.wait() == 1
    assert str(port) in server.log
    assert "Traceback" not in server.log


def test_a_source_that_is_not_there_is_named(tmp_path: Path):
    done = run("--model", "local:nothing", "--data-dir", str(tmp_path), "--device", "cpu")
    assert done.returncode == 1
    assert "no local model 'nothing'" in done.stderr
    assert "fork" not in done.stderr


def test_sigterm_finishes_calls_and_the_data_serves_again(make_server, tmp_path: Path):
    server = make_server()
    log = server.log
    assert "builtin:mini" in log
    assert "on cpu" in log
    answers: list[encode_pb2.EncodeResponse] = []
    errors: list[grpc.RpcError] = []
    stop = threading.Event()

    def call(number: int) -> None:
        with grpc.insecure_channel(
            server.address, [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            stub = encode_pb2_grpc.EncodeServiceStub(channel)
            while not stop.is_set():
                try:
                    request = texts(*(f"{number} {n}" for n in range(40)))
                    answers.append(stub.Encode(request, timeout=60))
                except grpc.RpcError as error:
                    errors.append(error)
                    return

    callers = [threading.Thread(target=call, args=(n,)) for n in range(8)]
    for caller in callers:
        caller.start()
    while len(answers) < 16:
        time.sleep(0.02)
    assert server.stop(60) == 0
    stop.set()
    for caller in callers:
        caller.join()
    # Whatever was refused came after the end of admission and may be tried again.
    assert {error.code() for error in errors} <= {grpc.StatusCode.UNAVAILABLE}
    assert "Traceback" not in server.log
    before = {answer.version for answer in answers}

    again = make_server()
    with grpc.insecure_channel(again.address) as channel:
        stub = encode_pb2_grpc.EncodeServiceStub(channel)
        answer = stub.Encode(texts("0 0"), timeout=60)
    assert {answer.version} == before
    first = np.frombuffer(answer.vectors.data, "<f4")
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-4)
    assert again.stop() == 0


def test_a_second_server_on_the_same_data_is_refused(make_server):
    server = make_server()
    other = spawn_server(server.data_dir, "--device", "cpu")
    assert other.wait() == 1
    assert "another server" in other.log


def test_sigterm_while_starting_ends_in_order(tmp_path: Path):
    server = spawn_server(tmp_path / "data", "--device", "cpu")
    while not (tmp_path / "data" / "hotclip.db").exists():
        assert server.process.poll() is None, server.log
        time.sleep(0.01)
    assert server.stop(60) == 0, server.log
    assert "Traceback" not in server.log


def test_a_second_signal_forces(make_server):
    server = make_server("--shutdown-wait-s", "60")
    server.process.send_signal(signal.SIGINT)
    while "stopping" not in server.log:
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait(10) == 128 + signal.SIGTERM
