"""Gates as people write them."""

from __future__ import annotations

import argparse
import re

import pytest

from hotclip import Gate
from hotclip._cli.gates import gate_of


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("monitor>=0.5", Gate(metric="monitor", at_least=0.5)),
        ("validation_loss<=2", Gate(metric="validation_loss", at_most=2.0)),
        ("monitor>=.9@photos of May", None),
        (
            "clip-text-to-clip-vision_hit_at_10>=.9@photos-of-May",
            Gate(
                metric="clip-text-to-clip-vision_hit_at_10",
                dataset="photos-of-May",
                at_least=0.9,
            ),
        ),
        ("monitor>=live@photos", Gate(metric="monitor", dataset="photos", live_margin=0.0)),
        ("monitor>=live-0.01@d", Gate(metric="monitor", dataset="d", live_margin=0.01)),
        ("mean_rank<=live+3@d", Gate(metric="mean_rank", dataset="d", live_margin=3.0)),
        ("monitor", None),
        ("monitor>=", None),
        ("monitor=0.5", None),
        ("monitor>0.5", None),
        (">=0.5", None),
        ("monitor>=half", None),
        ("monitor>=0.5.5", None),
    ],
)
def test_each_form(text: str, gate: Gate | None) -> None:
    if gate is None:
        with pytest.raises(argparse.ArgumentTypeError, match="METRIC"):
            gate_of(text)
    else:
        assert gate_of(text) == gate


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("monitor<=live+0.1@d", "monitor>=live-N"),
        ("validation_loss>=live@d", "validation_loss<=live+N"),
        ("clip-text-to-clip-vision_mean_rank>=live-1@d", "mean_rank<=live+N"),
    ],
)
def test_which_way_is_worse_is_not_turned_round(text: str, right: str) -> None:
    """The server knows by the metric, so the sign must not say the opposite."""
    with pytest.raises(argparse.ArgumentTypeError, match=f"write .*{re.escape(right)}"):
        gate_of(text)
