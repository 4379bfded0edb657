"""What is tried for what is asked."""

import pytest

from hotclip_server.encoding.engines.choices import EngineWish, candidates


@pytest.mark.parametrize(
    ("engine", "precision", "device", "expected"),
    [
        ("auto", "auto", "cpu", "torch/bf16 torch/fp32 onnx/fp32"),
        ("auto", "fp32", "cpu", "torch/fp32 onnx/fp32"),
        ("auto", "int8", "cpu", "onnx/int8"),
        ("torch", "auto", "cpu", "torch/bf16 torch/fp32"),
        ("torch", "fp32", "cpu", "torch/fp32"),
        ("onnx", "auto", "cpu", "onnx/fp32"),
        ("eager", "auto", "cpu", "eager/bf16"),
        ("eager", "fp32", "cpu", ""),
        ("onnx", "bf16", "cpu", ""),
    ],
)
def test_candidates(engine: str, precision: str, device: str, expected: str) -> None:
    found = candidates(EngineWish(engine=engine, precision=precision), device)
    assert " ".join(map(str, found)) == expected


def test_eight_bits_are_never_meant_by_auto() -> None:
    for device in ("cpu", "cuda:0"):
        assert not [c for c in candidates(EngineWish(), device) if c.precision == "int8"]
