"""Large batches are computed in parts, on threads of one core each."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.towers import inputs_of, tower_source

from hotclip_server.encoding.engines import torch_engine
from hotclip_server.encoding.engines.parts import Parts, cut
from hotclip_server.encoding.engines.torch_engine import TorchEngine
from hotclip_server.encoding.protocol import Tower


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(2)


@given(st.lists(st.integers(1, 77), min_size=1, max_size=70), st.integers(1, 16))
def test_parts_cost_about_as_much(costs: list[int], count: int) -> None:
    slices = cut(costs, count)
    together = [cost for part in slices for cost in costs[part]]
    assert together == costs
    assert 1 <= len(slices) <= count
    assert all(costs[part] for part in slices)
    share = sum(costs) / count
    assert max(sum(costs[part]) for part in slices) <= share + max(costs)


def test_each_thread_has_one_core_and_others_have_all(parts: Parts) -> None:
    before = torch.get_num_threads()
    meet = threading.Barrier(2)

    def look() -> tuple[int, int]:
        meet.wait(10)  # so that each takes one
        torch.ones(64, 64) @ torch.ones(64, 64)  # first use
        return threading.get_ident(), torch.get_num_threads()

    found = parts.run([look, look])
    assert len({thread for thread, _ in found}) == 2
    assert [threads for _, threads in found] == [1, 1]
    assert torch.get_num_threads() == before
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [before]


def test_an_error_is_raised_when_all_have_ended(parts: Parts) -> None:
    ended = threading.Event()

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        parts.run([fail, ended.set])
    assert ended.is_set()
    assert parts.run([lambda: 1, lambda: 2]) == [1, 2]


class Counting(TorchEngine):
    """Tells of what size the parts were."""

    sizes: Sequence[int] = ()

    def _run(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        self.sizes = [*self.sizes, len(batch)]
        return super()._run(batch)


@pytest.mark.parametrize("tower", Tower)
def test_small_batches_and_strange_layers_stay_whole(
    tower: Tower, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tower_source("clip", tower)
    items = inputs_of(source, 6)
    engine = Counting(source, "fp32", parts=parts)
    engine.run(items[:3])
    assert engine.sizes == [3]
    monkeypatch.setattr(torch_engine, "LEAST_PRODUCTS", 1.0)
    engine.run(items)
    assert len(engine.sizes) == 3
    assert sum(engine.sizes) == 9
