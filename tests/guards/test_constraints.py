"""Everything that the project asks for by name is pinned, and the pin is one it admits."""

import itertools
import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .sources import ROOT


def test_every_requirement_is_pinned() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name == "hotclip" or (requirement.marker and not requirement.marker.evaluate()):
            continue
        assert name in pins, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[name], prereleases=True), requirement


def test_the_base_install_is_the_client_alone() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=!~ \[;]", line)[0] for line in project["dependencies"]}
    assert names == {"grpcio", "grpcio-status", "protobuf", "numpy"}
