"""What passes as the same vectors, and what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.versions import CountedEncoder, run_inline

from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import FailedPrecondition
from hotclip_server.models import probes
from hotclip_server.testing import FakeEncoder


def unit_rows(seed: int = 0, spread: float = 1.0) -> NDArray[np.float32]:
    """Five rows about one direction: the smaller the spread, the nearer."""
    rng = np.random.default_rng(seed)
    rows = np.ones(16) + spread * rng.standard_normal((5, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("precision", "noise", "passes"),
    [("fp32", 1e-4, True), ("fp32", 0.02, False), ("bf16", 0.005, True), ("bf16", 0.2, False)],
)
def test_noise_against_the_distance_between_probes(
    precision: str, noise: float, passes: bool
) -> None:
    rows = unit_rows()
    noisy = rows + np.float32(noise) * unit_rows(1)
    if passes:
        probes.compare(rows, noisy, precision, "noise")
    else:
        with pytest.raises(FailedPrecondition, match="golden probes") as caught:
            probes.compare(rows, noisy, precision, "noise")
        assert caught.value.reason == "VERSION_UNFIT"


def test_an_untrained_encoder_is_judged_by_its_own_small_distances() -> None:
    rows = unit_rows(spread=0.001)
    swapped = rows[::-1].copy()
    probes.compare(rows, rows, "fp32", "equal")
    with pytest.raises(FailedPrecondition):
        probes.compare(rows, swapped, "fp32", "rows in another order")


def test_nan_is_never_equal() -> None:
    rows = unit_rows()
    with pytest.raises(FailedPrecondition):
        probes.compare(rows, rows * np.float32(np.nan), "bf16", "NaN")


async def test_probes_are_the_same_every_time_and_in_small_batches(tmp_path: Path) -> None:
    encoder = FakeEncoder("x")
    inputs = probes.prepare(encoder)
    again = probes.prepare(FakeEncoder("x"))
    for tower, batch in inputs.items():
        assert len(batch) <= 5
        for one, other in zip(batch, again[tower], strict=True):
            assert np.array_equal(one.array, other.array)
    rows = await probes.encode(encoder, inputs, run_inline)
    probes.check_rows(rows, inputs, encoder.spec)
    await probes.check_alone(encoder, inputs, rows, run_inline)
    assert {tower for tower, _ in encoder.batches} == set(Tower)


async def test_a_row_that_depends_on_its_batch_is_found() -> None:
    class Mixing(CountedEncoder):
        def encode(self, tower, batch):  # type: ignore[no-untyped-def]  # as in the base
            rows = super().encode(tower, batch)
            return rows if len(batch) == 1 else np.roll(rows, 1, axis=0)

    encoder = Mixing("x")
    inputs = probes.prepare(encoder)
    rows = await probes.encode(encoder, inputs, run_inline)
    with pytest.raises(FailedPrecondition, match="alone"):
        await probes.check_alone(encoder, inputs, rows, run_inline)


def test_int8_is_judged_by_what_it_retrieves() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((64, 32)).astype(np.float32)
    near = probes.parity(rows, rows + 0.02 * rng.standard_normal((64, 32)).astype(np.float32))
    far = probes.parity(rows, rows + 0.5 * rng.standard_normal((64, 32)).astype(np.float32))
    assert probes.parity(rows, 3 * rows).recall == 1
    assert 0.9 <= near.recall < 1
    assert near.holds_in("int8")
    assert not near.holds_in("fp32")
    assert far.recall < 0.9
    assert not far.holds_in("int8")
    assert f"recall@10 {far.recall:.3f}" in str(far)


def test_a_turned_space_does_not_find_what_is_stored() -> None:
    """Vectors that fit together but not with those of before."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((64, 32)).astype(np.float32)
    turned = rows @ np.linalg.qr(rng.standard_normal((32, 32)))[0].astype(np.float32)
    assert probes.parity(rows, turned).recall < 0.5


def test_inputs_that_a_tokenizer_takes_for_the_same_stand_for_each_other() -> None:
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((64, 32)).astype(np.float32)
    rows[5::7] = rows[5]
    rounded = rows + 1e-6 * rng.standard_normal(rows.shape).astype(np.float32)
    assert probes.parity(rows, rounded).holds_in("fp32")
    mixed = rounded.copy()
    mixed[[1, 2]] = mixed[[2, 1]]
    assert not probes.parity(rows, mixed).nearest_is_own
