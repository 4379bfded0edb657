"""Queries of their own and a monitor over gRPC, on a thread and in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.drawings import drawn_pairs
from support.server import start_server

import hotclip
from hotclip.errors import InvalidArgument

PAIRS = [hotclip.Pair(text, image) for image, text in drawn_pairs()]
COUNTED = ("yielded", "samples", "data_wait")
"""What metrics begin with that tell of time."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hotclip.Client]:
    folder = tmp_path_factory.mktemp("measured") / "data"
    with (
        start_server(folder, "--device", "cpu", "--threads", "1") as running,
        hotclip.Client(running.address) as client,
    ):
        for name, pairs in (
            ("train", PAIRS[:20]),
            ("eval", PAIRS[18:26]),
            ("queries", PAIRS[26:]),
            ("index", PAIRS[10:24]),
        ):
            client.upload_dataset(name, pairs)
        yield client


@dataclass(frozen=True)
class Told:
    """What a run reached and said."""

    metrics: dict[str, float]
    lines: list[str]


def tuned(client: hotclip.Client, base: str, isolation: str) -> Told:
    run = client.finetune(
        "train",
        "eval",
        query_data="queries",
        index_data="index",
        monitor="validation_loss",
        early_stopping=True,
        method="full",
        learning_rate=1e-3,
        epochs=2,
        batch_size=8,
        chunk_size=4,
        isolation=isolation,  # type: ignore[arg-type]  # both are known
        base_version=base,
    )
    job = run.wait()
    lines = [e.detail.message for e in run.events() if isinstance(e.detail, hotclip.LogLine)]
    lineage = client.get_version(job.result_version).lineage
    assert lineage is not None
    assert set(lineage.datasets) == {"train", "eval", "query", "index"}
    assert lineage.config["monitor"] == "validation_loss"
    examples = {found.query for found in run.examples()}
    assert examples == {pair.text for pair in PAIRS[26:]}
    client.activate(base)  # the next one has the same to beat
    metrics = {n: v for n, v in job.metrics.items() if not n.startswith(COUNTED)}
    return Told(metrics, lines)


def test_both_isolations_measure_and_decide_the_same(client: hotclip.Client) -> None:
    base = client.get_model().live_version
    first, second = (tuned(client, base, isolation) for isolation in ("in_process", "process"))
    assert first.metrics == second.metrics
    for told in (first, second):
        assert told.metrics["clip-text-to-clip-vision_queries"] == 6
        assert "2 images and 2 texts of the evaluation are trained on: it flatters" in told.lines
        assert not any("of the queries" in line for line in told.lines)
        (decided,) = [line for line in told.lines if "validation_loss" in line]
        assert f"validation_loss {told.metrics['validation_loss']:.4f}" in decided


def test_what_is_wrong_is_named(client: hotclip.Client) -> None:
    for changes in ({"monitor": "epoch_loss"}, {"monitor": "monitor", "val_split": 0.0}):
        with pytest.raises(InvalidArgument) as caught:
            client.finetune("train", validate_only=True, **changes)
        assert [violation.field for violation in caught.value.fields] == ["monitor"]
    everything = client.finetune("train", query_data="queries", soup=2, validate_only=True)
    assert everything.id == ""
