"""The generated code is what the protos generate, and runs on the protobuf that users may have."""

import re
import subprocess
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

from .sources import ROOT

GENERATED = ROOT / "proto/hotclip_proto/v1"


def floor(name: str) -> Version:
    """The lowest version of `name` that pyproject.toml admits."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [Requirement(line) for line in project["dependencies"]]
    [requirement] = [item for item in requirements if item.name == name]
    [lowest] = [item.version for item in requirement.specifier if item.operator == ">="]
    return Version(lowest)


def test_generated_code_is_fresh() -> None:
    run = subprocess.run(
        ["make", "proto-check", "--assume-old=.venv/.installed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"run `make proto`\n{run.stdout}{run.stderr}"


def test_protobuf_floor_is_what_the_generated_code_demands() -> None:
    check = re.compile(r"ValidateProtobufRuntimeVersion\(\s*[\w.]+,\s*(\d+),\s*(\d+),\s*(\d+)")
    texts = [path.read_text(encoding="utf-8") for path in sorted(GENERATED.glob("*_pb2.py"))]
    demanded = {Version(".".join(numbers)) for text in texts for numbers in check.findall(text)}
    assert demanded == {floor("protobuf")}


def test_grpcio_floor_is_what_the_generated_code_demands() -> None:
    version = re.compile(r"^GRPC_GENERATED_VERSION = '([\d.]+)'$", re.MULTILINE)
    found = [version.search(path.read_text()) for path in sorted(GENERATED.glob("*_pb2_grpc.py"))]
    demanded = {Version(match[1]) for match in found if match}
    assert demanded
    assert max(demanded) == floor("grpcio")
