from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import machine

GENERATIONS = ((25, 1), (25, 17))


def test_two_generations_of_one_name_are_two_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = set()
    for family, model in GENERATIONS:
        listing = tmp_path / f"cpuinfo-{model}"
        one = f"cpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: AMD EPYC\n"
        listing.write_text(f"processor\t: 0\n{one}\nprocessor\t: 1\n{one}\n")
        monkeypatch.setattr(machine, "CPU_INFO", listing)
        told.add(machine.describe_machine("cpu")["processor"])
    assert told == {f"AMD EPYC (cpu family {f}, model {m})" for f, m in GENERATIONS}


def test_a_processor_of_which_less_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor: 0\nmodel name: Cortex-A72\n")
    monkeypatch.setattr(machine, "CPU_INFO", listing)
    assert machine.describe_machine("cpu")["processor"] == "Cortex-A72"
