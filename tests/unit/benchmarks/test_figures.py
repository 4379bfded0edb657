"""The form of a result: JSON, table, targets."""

import json
from pathlib import Path

import pytest

from benchmarks.figures import Figure, added_to, judged, table, write_figures
from benchmarks.targets import target_of

ASKED = {"name", "value", "unit", "target", "passed", "baseline", "min_cosine"}


@pytest.mark.parametrize(
    ("name", "device", "value", "passed"),
    [
        ("served_over_raw.tensor.ViT-B-32", "cpu", 0.92, True),
        ("served_over_raw.tensor.ViT-B-32", "cpu", 0.919, False),
        ("served_over_raw.tensor.ViT-B-32", "NVIDIA H100 80GB HBM3", 0.8, True),
        ("served_over_raw.tensor.ViT-L-14", "NVIDIA H100 80GB HBM3", 0.8, False),
        ("served_over_raw.tensor.ViT-L-14", "NVIDIA A10", 0.8, None),
        ("latency.p99_added_over_batch.mini", "cpu", 5.9, True),
        ("latency.p99_added_over_batch.mini", "NVIDIA A10", 5.9, False),
        ("cold_start_s.mini", "cpu", 3.1, False),
        ("rate.text.1x1.mini", "cpu", 3.1, None),
        ("over_infinity.jpeg_small.8x1", "cpu", 2.4, False),
        ("over_infinity.jpeg_small.4x16", "cpu", 2.4, True),
        ("over_infinity.text.4x16", "NVIDIA A10", 4.9, False),
        ("over_clip-as-service.text.4x16", "cpu", 7.9, False),
        ("over_clip-as-service.jpeg_small.8x1", "cpu", 3.5, True),
        ("over_clip-as-service.text.8x1", "NVIDIA H100 80GB HBM3", 19.0, False),
        ("over_clip-as-service.jpeg_large.8x1", "cpu", 9.0, None),
    ],
)
def test_a_figure_is_judged_by_its_device(
    name: str, device: str, value: float, passed: bool | None
) -> None:
    figure = judged(Figure(name=name, value=value, unit="ratio"), device)
    assert figure.passed is passed
    target = target_of(name, device)
    assert figure.target == (target.value if target else None)


def test_the_json_is_a_list_that_begins_with_the_machine(tmp_path: Path) -> None:
    figure = judged(
        Figure(name="cold_start_s.mini", value=2.0, unit="s", baseline=1.5, min_cosine=None), "cpu"
    )
    path = tmp_path / "new/encode.cpu.json"
    write_figures(path, {"device": "cpu"}, [figure])
    machine, record = json.loads(path.read_text(encoding="utf-8"))
    assert set(record) == set(machine) >= ASKED
    assert machine["name"] == "machine"
    assert machine["value"] == {"device": "cpu"}
    assert (record["value"], record["target"], record["passed"]) == (2.0, 3.0, True)


def test_a_part_takes_the_place_of_its_own_figures_of_the_same_machine(tmp_path: Path) -> None:
    path = tmp_path / "encode.cpu.json"
    machine = {"device": "cpu", "day": "2026-01-01", "models": [], "contents": []}
    old = [Figure(name=name, value=1.0, unit="ratio") for name in ("a", "b")]
    write_figures(path, machine, old)

    part = {**machine, "day": "2026-01-02", "models": ["builtin:mini"], "contents": ["text"]}
    new = [Figure(name=name, value=2.0, unit="ratio") for name in ("c", "b")]
    told, figures = added_to(path, part, new)
    assert [(figure.name, figure.value) for figure in figures] == [("a", 1), ("b", 2), ("c", 2)]
    assert told["day"] == "2026-01-01"
    (measured,) = told["parts"]
    assert measured["day"] == "2026-01-02"
    assert measured["models"] == ["builtin:mini"]
    assert measured["figures"] == ["b", "c"]

    write_figures(path, told, figures)
    assert len(added_to(path, part, new)[0]["parts"]) == 2
    other = {**part, "device": "another"}
    assert added_to(path, other, new) == (other, new)
    assert added_to(tmp_path / "none.json", part, new) == (part, new)


def test_the_table_lines_up_and_says_what_was_missed() -> None:
    figures = [
        judged(Figure(name="cold_start_s.mini", value=3.14159, unit="s", baseline=2.0), "cpu"),
        Figure(name="rate.text.1x1.mini", value=12345.6, unit="items/s", min_cosine=0.9999991),
    ]
    lines = table(figures, "cpu").splitlines()
    assert len(lines) == 4
    assert "≤ 3.00" in lines[2]
    assert "MISSED" in lines[2]
    assert lines[0].index("value") + 5 == lines[2].index("3.14") + 4
    assert "12,346" in lines[3]
    assert "0.999999" in lines[3]
