"""What a training leaves behind: nothing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from hotclip_server.training.config import TrainConfig
from hotclip_server.training.trainer import train
from tests.unit.training.tiny import colours, tiny_clip


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "full"},
        {"method": "lora"},
        {"method": "lit"},
        {"method": "full", "preserve": 0.1},
    ],
)
def test_a_run_that_ended_holds_nothing(changes: dict[str, Any]) -> None:
    config = TrainConfig(batch_size=6, max_steps=2, **changes)
    gc.collect()
    gc.disable()  # it may come late, and what a run holds is large
    try:
        clip = tiny_clip()
        parameters = [weakref.ref(parameter) for parameter in clip.model.parameters()]
        for event in train(clip, colours(12), config):
            del event
        del clip
        assert [reference() for reference in parameters] == [None] * len(parameters)
    finally:
        gc.enable()
