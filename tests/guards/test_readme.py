"""The README's commands run, and its examples do what it says."""

import importlib
import io
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import grpc
import pytest
from support.graphs import know_graphs

from benchmarks.server_process import running_server
from benchmarks.shapes import captioned_shapes
from hotclip._cli.main import make_parser

from .sources import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:50051"
PROTOS = ("artifact", "dataset", "drift", "encode", "feedback", "finetune", "job", "model")
PROTOS += ("search", "server")
SCRIPTS = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = io.StringIO("".join(blocks("bash")))
    return [command for line in lines if (command := line.partition("#")[0].strip())]


def run(command: list[str], folder: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and `catalogue.csv` in it, as the examples expect."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    rows = ["image,text"]
    for caption, data in captioned_shapes(24):
        (folder / "photos" / f"{caption}.png").write_bytes(data)
        rows.append(f"photos/{caption}.png,a drawing of {caption}")
    (folder / "catalogue.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = (str(SCRIPTS / "hotclip-server"),)
    data = tmp_path_factory.mktemp("data")
    know_graphs(data)
    with running_server(data, program=program) as running:
        yield running.address


def test_the_commands_are_those_that_tests_run() -> None:
    """The examples run below; `make demo` has its own test, `make test` runs this one."""
    assert set(commands()) == {
        "make demo",
        "make test",
        "pip install '.[server]'",
        "hotclip-server",
        "python -m hotclip_server --help",
    }


def test_the_command_knows_what_is_shown_of_it() -> None:
    """Each line is read by the command's own parser; tests/integration/test_cli.py runs them."""
    shown = [shlex.split(line, comments=True) for line in "".join(blocks("sh")).splitlines()]
    assert len(shown) > 3
    for program, *arguments in shown:
        assert program == "hotclip"
        assert make_parser().parse_args(arguments)


def test_the_first_screen_shows_how_to_begin() -> None:
    first = README.splitlines()[:30]
    assert any(line.startswith("make demo") for line in first)
    assert any(line.startswith("make test") for line in first)


def test_ci_runs_the_test_command() -> None:
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", re.findall(r"make ([a-z][\w-]*)", README))
def test_make_targets_exist(target: str) -> None:
    run(["make", "--dry-run", target])


def test_server_installs(tmp_path: Path) -> None:
    """For real, into an environment of its own that sees the packages which this one has: what the
    extra asks for and is not here would be downloaded."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    (own,) = (tmp_path / "env/lib").glob("python*/site-packages")
    (own / "seen.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    install = ["-m", "pip", "install", "--no-build-isolation", "--disable-pip-version-check"]
    assert "Successfully installed hotclip" in run([str(python), *install, ".[server]"])
    where = "import hotclip_server; print(hotclip_server.__file__)"
    # -I: what PYTHONPATH names would come before what was installed.
    assert str(own) in run([str(python), "-I", "-c", where], folder=tmp_path)
    assert "--data-dir" in run([str(tmp_path / "env/bin/hotclip-server"), "--help"])


def test_help_documents_every_option() -> None:
    from hotclip_server.config import ServerConfig
    from hotclip_server.settings import field_docs

    text = " ".join(run([sys.executable, "-m", "hotclip_server", "--help"]).split())
    docs = field_docs()
    for setting in fields(ServerConfig):
        assert f"--{setting.name.replace('_', '-')}" in text
        assert docs[setting.name].split()[0] in text
    assert "--config" in text
    assert "HOTCLIP_" in text


def test_the_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def documented_rpcs() -> dict[str, bool]:
    """`Service.Method` of the README's table, and whether it is said to work."""
    rows = re.findall(r"^\| `(\w+Service)` \| (.*) \| (.*) \|$", README, re.MULTILINE)
    return {
        f"{service}.{method}": works
        for service, built, missing in rows
        for works, cell in ((True, built), (False, missing))
        for method in re.findall(r"`(\w+)`", cell)
    }


def test_rpcs_work_or_answer_unimplemented_as_said(server: str) -> None:
    """Each is called with an empty request: whatever else is wrong with that, it is known."""
    modules = map(importlib.import_module, (f"hotclip_proto.v1.{name}_pb2" for name in PROTOS))
    services = [s for module in modules for s in module.DESCRIPTOR.services_by_name.values()]
    answers = {}
    with grpc.insecure_channel(server) as channel:
        for service in services:
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                call = channel.stream_stream(path)(iter([b""]), timeout=30)
                try:
                    next(call, None)
                    code = grpc.StatusCode.OK
                except grpc.RpcError as error:
                    code = error.code()
                call.cancel()
                answers[f"{service.name}.{method.name}"] = code is not grpc.StatusCode.UNIMPLEMENTED
    assert answers == documented_rpcs()


def test_the_examples_run(server: str, photos: Path) -> None:
    code = "\n".join(blocks("python")).replace(ADDRESS, server)
    assert server in code
    output = run([sys.executable, "-W", "error", "-c", code], photos)
    # The search after the flip names the new version; the model without a server has its space.
    assert output.count("\nTrue\n") == 2
    assert "bad rows, left out         0" in output
    assert output.splitlines()[-1] == "(1, 128) (1, 64) True"
