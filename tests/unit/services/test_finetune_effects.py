"""What is given and would do nothing is refused once the data are known."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from hotclip_proto.v1 import finetune_pb2 as pb
from hotclip_server.datasets.records import DatasetCounts, DatasetRecord
from hotclip_server.services.finetune_effects import method_problems, prompt_problems
from hotclip_server.training.config import Method

LORA = {"lora": pb.Lora(rank=4)}
DECAY = {"layer_decay": 0.9}


@pytest.mark.parametrize(
    ("changes", "method", "field"),
    [
        (DECAY, "lora", "layer_decay"),
        ({"method": pb.METHOD_AUTO, **DECAY}, "lora", "layer_decay"),
        ({"layer_decay": 1.0}, "lora", ""),  # off is off by any method
        (DECAY, "full", ""),
        (LORA, "full", "lora"),
        ({"method": pb.METHOD_AUTO, **LORA}, "full", "lora"),
        (LORA, "lora", ""),
        ({"method": pb.METHOD_LORA, **LORA}, "lora", ""),
        ({"method": pb.METHOD_FULL, **DECAY}, "full", ""),
        ({}, "lora", ""),
        ({}, "full", ""),
    ],
)
def test_options_of_the_method_that_auto_did_not_choose(
    changes: dict[str, Any], method: Method, field: str
) -> None:
    found = list(method_problems(pb.FineTuneRequest(**changes), method, 123))
    assert [violation.field for violation in found] == [field] * bool(field)
    other = {"lora": "full", "full": "lora"}[method]
    for violation in found:
        assert f"auto, which is {method} for 123 training pairs" in violation.reason
        assert f"ask for the method {other}" in violation.reason


def dataset(uncaptioned: int) -> DatasetRecord:
    counts = DatasetCounts(
        pairs=9,
        images=9,
        texts=9,
        groups=0,
        labels=3,
        uncaptioned_pairs=uncaptioned,
        pairs_with_negatives=0,
        duplicate_pairs=0,
        size_bytes=9,
    )
    return DatasetRecord(
        id="d",
        name="d",
        description="",
        counts=counts,
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("prompts", "waiting", "refused"),
    [
        (["a {label}"], [0], True),
        (["a {label}"], [0, 0], True),
        (["a {label}"], [4], False),
        (["a {label}"], [0, 1], False),
        ([], [0], False),
    ],
)
def test_prompts_without_an_image_to_name(
    prompts: list[str], waiting: list[int], refused: bool
) -> None:
    found = list(prompt_problems(prompts, map(dataset, waiting)))
    assert [violation.field for violation in found] == ["prompts"] * refused
