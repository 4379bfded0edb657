"""The `hotclip` command, as a process, against one real server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.drawings import drawn_pairs
from support.server import ServerProcess, start_server

import hotclip

UNREACHABLE = "127.0.0.1:1"
TUNE = ("--max-steps", "4", "--batch-size", "8", "--method", "full", "--activation", "never")


class Shell:
    """Runs commands in a folder with pictures, against a server."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self.folder = folder
        clean = {name: v for name, v in os.environ.items() if not name.startswith("HOTCLIP_")}
        self.env = {**clean, "HOTCLIP_SERVER": address, "COLUMNS": "120"}

    def start(self, *arguments: str, **how: Any) -> subprocess.Popen[str]:
        """A command that runs."""
        command = [sys.executable, "-m", "hotclip", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(
            command, text=True, cwd=self.folder, env=self.env, **{**pipes, **how}
        )

    def run(self, *arguments: str, exits: int = 0, given: str | None = None) -> tuple[str, str]:
        """What a command wrote to stdout and stderr."""
        stdin = subprocess.DEVNULL if given is None else subprocess.PIPE
        with self.start(*arguments, stdin=stdin) as process:
            out, err = process.communicate(given, timeout=120)
        assert process.returncode == exits, (arguments, process.returncode, out, err)
        assert "Traceback" not in err
        return out, err

    def json(self, *arguments: str) -> Any:
        """Its one JSON value."""
        return json.loads(self.run(*arguments, "--json")[0])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Its own: these tests change the live version."""
    folder = tmp_path_factory.mktemp("cli") / "data"
    with start_server(folder, "--device", "cpu") as running:
        yield running


@pytest.fixture(scope="module")
def shell(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("shell")
    rows = ["image,text"]
    for place, (image, text) in enumerate(drawn_pairs()):
        (folder / f"{place}.png").write_bytes(image)
        rows.append(f"{place}.png,{text}")
    rows.append("nothing.png,a picture that is not there")
    (folder / "shapes.csv").write_text("\n".join(rows))
    return Shell(server.address, folder)


@pytest.fixture(scope="module")
def tuned(shell: Shell) -> str:
    """The name of a fine-tune that has ended well."""
    stored = shell.json("datasets", "upload", "shapes.csv", "--max-bad-rows", "1")
    assert (stored["name"], stored["pairs"], stored["report"]["bad_rows"]) == ("shapes", 32, 1)
    out, _ = shell.run("finetune", "shapes", *TUNE, "--name", "first", "--detach")
    assert out == "first\n"
    out, err = shell.run("jobs", "watch", "first")
    assert "first SUCCEEDED" in err
    assert "100% 4/4" in err
    assert "state      SUCCEEDED" in out
    assert "monitor" in out
    return "first"


def test_jobs_are_found_shown_and_reported(shell: Shell, tuned: str, tmp_path: Path) -> None:
    out, _ = shell.run("jobs", "list", "--kind", "fine-tune")
    titles, *rows = out.splitlines()
    assert titles.split() == ["NAME", "KIND", "STATE", "PROGRESS", "MODEL", "CREATED", "RESULT"]
    assert any(row.split()[:4] == [tuned, "FINE_TUNE", "SUCCEEDED", "100%"] for row in rows)

    listed = shell.json("jobs", "list")
    assert [one["config"] for one in listed] == [{}] * len(listed)
    shown = shell.json("jobs", "show", tuned)
    assert shown["state"] == "SUCCEEDED"
    assert shown["metrics"]["validation_loss"] > 0
    assert shown["result_version"] in rows[0]
    assert shown["config"]["config"]["batch_size"] == 8
    lines = [line.split() for line in shell.run("jobs", "show", tuned)[0].splitlines()]
    assert ["config.batch_size", "8"] in lines
    assert ["config.beta2", "0.98"] in lines

    events = [
        json.loads(line) for line in shell.run("jobs", "watch", tuned, "--json")[0].splitlines()
    ]
    assert [event["seq"] for event in events[:-1]] == list(range(1, shown["last_seq"] + 1))
    assert events[-1]["kind"] == "Job"
    assert {"StateChange", "LogLine", "Measurement", "Example"} <= {e["kind"] for e in events}

    logs, _ = shell.run("jobs", "logs", tuned)
    assert "INFO training on" in logs
    assert "INFO epoch 1 of " in logs
    assert shell.run("jobs", "logs", "-f", tuned)[0] == logs

    page = tmp_path / "page.html"
    assert shell.run("jobs", "report", tuned, "-o", str(page))[0] == f"{page}\n"
    html = page.read_text("utf-8")
    assert "<svg" in html
    assert "1 of 33 were left out" in html
    assert "nothing.png" in html


def test_watching_on_a_terminal_draws_one_line(shell: Shell, tuned: str) -> None:
    mine, its = pty.openpty()
    with shell.start("jobs", "watch", tuned, stderr=its) as process:
        os.close(its)
        drawn = b""
        while True:
            try:
                part = os.read(mine, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            drawn += part
    os.close(mine)
    assert process.returncode == 0
    assert b"\r\x1b[2K" in drawn
    assert "█" * 8 in drawn.decode()


def test_a_version_goes_live_and_back(shell: Shell, tuned: str) -> None:
    version = shell.json("jobs", "show", tuned)["result_version"]
    live = shell.json("models")[0]["live_version"]
    rows = shell.run("versions")[0].splitlines()
    assert any(row.split()[:2] == [version, "STAGED"] for row in rows)
    assert shell.json("activate", version)["live_version"] == version
    assert version in shell.run("encode", "a fox")[1]
    assert f"live      {live}" in shell.run("rollback")[0]
    assert "VERSION_IN_USE" in shell.run("unload", version, exits=1)[1]
    assert "STORED" in shell.run("unload", version, "--release-rollback")[0]
    info = shell.json("info")
    assert live in [v["version"] for v in info["versions"] if v["live"]]
    assert "DEVICE" not in shell.run("info")[0]


def test_a_version_tells_where_it_is_from_and_passes_gates(shell: Shell, tuned: str) -> None:
    job = shell.json("jobs", "show", tuned)
    version = job["result_version"]
    shown = shell.json("version", version)
    data = shell.json("datasets", "list")[0]["id"]
    assert shown["lineage"]["job"] == job["id"]
    assert shown["lineage"]["datasets"] == {"train": data}
    assert shown["lineage"]["config"]["config"]["batch_size"] == 8
    lines = shell.run("version", version)[0].splitlines()
    assert ["train", "data", data] in [line.split() for line in lines]
    reached = shown["metrics"]["monitor"]
    live = shell.json("models")[0]["live_version"]
    _, err = shell.run("activate", version, "--gate", f"monitor>={reached + 0.1}", exits=1)
    assert "GATE_NOT_REACHED" in err
    _, err = shell.run("activate", version, "--gate", "monitor>=live@shapes", exits=1)
    assert "GATE_NOT_MEASURED" in err
    trial = ("--gate", f"monitor>={reached - 0.1}", "--validate-only")
    assert shell.json("activate", version, *trial)["live_version"] == live
    assert "METRIC>=N" in shell.run("activate", version, "--gate", "monitor", exits=2)[1]


def test_weights_come_are_mixed_and_go(shell: Shell, tuned: str) -> None:
    assert shell.run("backbones")[0].splitlines()[1].startswith("builtin:mini ")
    version = shell.json("jobs", "show", tuned)["result_version"]
    base = shell.json("load", "builtin:mini")["id"]
    merged = shell.run("merge", base, version, "--alpha", "0.5")[0].split()[1]
    assert merged not in (base, version)
    out, err = shell.run("export", merged, "--format", "open_clip")
    assert (shell.folder / out.strip()).is_file()
    assert err.startswith("job ")


def test_encode_texts_and_images(shell: Shell) -> None:
    out, err = shell.run("encode", "a red square", "0.png")
    assert out.splitlines()[0].split()[0] == "INPUT"
    assert [line.partition("  ")[0] for line in out.splitlines()[1:]] == ["a red square", "0.png"]
    found = shell.json("encode", "a red square", "image:0.png", "text:0.png")
    vectors = np.array(found["vectors"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-3)
    assert found["version"] in err
    shell.run("encode", "-", "-o", "vectors.npy", given="a red square\n\na dog\n")
    written = np.load(shell.folder / "vectors.npy", allow_pickle=False)
    assert written.shape == (2, vectors.shape[1])
    assert written[0] == pytest.approx(vectors[0], abs=1e-3)


def test_search(shell: Shell) -> None:
    with hotclip.Client(shell.address) as client:
        client.create_collection("drawn")
        pictures = sorted(shell.folder.glob("*.png"))
        client.upsert("drawn", [(p.stem, p, {"file": p.name}) for p in pictures])
    out, _ = shell.run("search", "drawn", "5.png", "-k", "3", "--exact")
    rank, cosine, point, *payload = out.splitlines()[1].split()
    assert (rank, point, " ".join(payload)) == ("1", "5", '{"file": "5.png"}')
    assert float(cosine) > 0.99
    assert len(shell.json("search", "drawn", "a red square")["hits"]) == 10
    assert shell.run("collections")[0].splitlines()[1].split()[:2] == ["drawn", "32"]
    wanted = ("--filter", '{"file": "7.png"}')
    hits = shell.json("search", "drawn", "5.png", "--plus", "a dog", "--minus", "9.png", *wanted)
    assert [hit["id"] for hit in hits["hits"]] == ["7"]
    assert shell.json("points", "drawn", *wanted) == [{"id": "7", "payload": {"file": "7.png"}}]
    out, err = shell.run("points", "drawn", "7", "none")
    assert (out.splitlines()[1].split()[0], err) == ("7", "no point 'none'\n")
    assert len(shell.run("points", "drawn", "-n", "5")[0].splitlines()) == 6
    assert shell.run("count", "drawn")[0] == "32\n"
    assert shell.json("count", "drawn", *wanted) == {"points": 1}
    assert "JSON" in shell.run("count", "drawn", "--filter", "[1]", exits=2)[1]


def test_a_collection_is_reindexed_and_what_was_made_is_given_up(shell: Shell, tuned: str) -> None:
    version = shell.json("jobs", "show", tuned)["result_version"]
    with hotclip.Client(shell.address) as client:
        client.create_collection("shadowed")
        client.upsert("shadowed", [("fox", "a fox")])
    assert "SUCCEEDED" in shell.run("reindex", "shadowed", version)[0]
    reindex = ("reindex", "shadowed", version, "--name", "again", "--detach")
    assert shell.run(*reindex)[0] == "again\n"
    shell.run("jobs", "watch", "again")
    assert "DropShadow" in shell.run("delete-version", version, exits=1)[1]
    dropped = shell.json("drop-shadow", "shadowed", version)
    assert (dropped["name"], dropped["shadow_version"]) == ("shadowed", "")
    refused = shell.run("drop-shadow", "shadowed", version, exits=1)[1]
    assert "SHADOW_NOT_FOUND" in refused
    with hotclip.Client(shell.address) as client:
        client.delete_collection("shadowed")


def test_evaluate_follows_the_job(shell: Shell, tuned: str) -> None:
    some = shell.folder / "some.csv"
    some.write_text("\n".join((shell.folder / "shapes.csv").read_text().splitlines()[:9]))
    out, err = shell.run("evaluate", "some.csv", "--k", "5", "--name", "measured")
    assert "8/8 rows" in err
    assert "measured SUCCEEDED" in err
    assert "measured after  mRR text→image 0." in err
    assert "clip-text-to-clip-vision_reciprocal_rank" in out
    rows = shell.run("datasets", "list")[0].splitlines()[1:]
    assert ["shapes", "32"] in [row.split()[:2] for row in rows]
    assert "bad rows, left out         1" in shell.run("datasets", "report", "shapes")[0]
    advice = shell.json("finetune", "shapes", "--validate-only")["advice"]
    checked = shell.run("finetune", "shapes", "--validate-only")[0].splitlines()
    assert checked == ["valid", *advice.splitlines()]
    old = shell.folder / "old.csv"
    old.write_bytes("image;text\n0.png;ein Würfel\nnone.png;nichts\n".encode("latin-1"))
    _, err = shell.run("datasets", "upload", "old.csv", exits=2)
    assert "is not utf-8" in err
    told = ("--encoding", "latin-1", "--delimiter", ";", "--max-bad-share", "0.5")
    assert shell.json("datasets", "upload", "old.csv", *told)["pairs"] == 1
    shell.run("datasets", "delete", "old")


def test_an_interrupted_command_leaves_the_job_alone(shell: Shell, tuned: str) -> None:
    many = ("--max-steps", "100000", "--val-split", "0", "--name", "long")
    with shell.start("finetune", "shapes", *many) as process:
        while shell_state(shell, "long") != "RUNNING":
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the job goes on: hotclip jobs watch long" in err
    assert "Traceback" not in err
    assert shell_state(shell, "long") == "RUNNING"
    assert shell.json("jobs", "cancel", "long")["state"] in ("CANCELLING", "CANCELLED")
    _, err = shell.run("jobs", "watch", "long", exits=1)
    assert "long CANCELLED" in err
    shell.run("jobs", "delete", "long")
    assert shell_state(shell, "long") == ""


def shell_state(shell: Shell, job: str) -> str:
    """The state of a job; empty if there is none."""
    with hotclip.Client(shell.address) as client:
        return next((j.state.value for j in client.list_jobs() if j.name == job), "")


@pytest.mark.parametrize(
    ("arguments", "exits", "said"),
    [
        (("jobs", "show", "nobody"), 1, "hotclip: JOB_NOT_FOUND: no job 'nobody'"),
        (("activate", "ver-none"), 1, "NOT_FOUND"),
        (("encode", "nothing.png"), 2, "input: no file 'nothing.png'; if it is meant as a text"),
        (("encode", "x", "-o", "none/x.npy"), 1, "No such file or directory: 'none/x.npy'"),
        (("finetune", "nothing.csv"), 2, "data: no file 'nothing.csv'"),
        (("finetune", "nothing"), 1, "no dataset 'nothing'"),
        (("finetune", "nothing", "--epochs", "0"), 2, "epochs: must be"),
        (("finetune", "nothing", "--epochs", "-1"), 2, "epochs: can't be -1"),
        (("finetune", "x", "--epochs", "many"), 2, "argument --epochs: invalid int value: 'many'"),
        (("finetune", "x", "--trackers", "neptune"), 2, "--trackers: invalid choice: 'neptune'"),
        (("jobs",), 2, "the following arguments are required: COMMAND"),
        (("encode", "x", "--timeout", "no"), 2, "--timeout: must be a number above 0, is 'no'"),
        (("models", "-s", UNREACHABLE), 3, f"is there a server at {UNREACHABLE}?"),
    ],
)
def test_errors_are_a_line_and_an_exit_code(
    shell: Shell, arguments: tuple[str, ...], exits: int, said: str
) -> None:
    out, err = shell.run(*arguments, exits=exits)
    assert said in err
    assert out == ""
