"""What `hotclip finetune` says of a request that is only checked."""

from __future__ import annotations

import json

import pytest

from hotclip._cli.main import main
from tests.unit.client.conftest import FakeEncode

ADVICE = "vectors of shop must be made anew\nwith lock_image they \x1b[1mstay\x1b[0m valid"


@pytest.mark.parametrize("advice", ["", ADVICE])
def test_the_advice_stands_below_the_verdict(
    fake: FakeEncode, capsys: pytest.CaptureFixture[str], advice: str
) -> None:
    fake.jobs.advice = advice
    command = ["finetune", "data", "--validate-only", "-s", fake.address]
    assert main(command) == 0
    shown, *lines = capsys.readouterr().out.splitlines()
    assert shown == "valid"
    assert lines == [line.replace("\x1b", " ") for line in advice.splitlines()]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "advice": advice}
