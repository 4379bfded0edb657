"""Large batches are computed in parts, on threads of one core each."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.towers import inputs_of, tower_source

from hotclip_server.encoding.engines import parts as parts_module
from hotclip_server.encoding.engines import torch_engine
from hotclip_server.encoding.engines.parts import UNEVEN, PartThreads, cut
from hotclip_server.encoding.engines.torch_engine import TorchEngine
from hotclip_server.encoding.protocol import Tower


@pytest.fixture(scope="module")
def parts() -> Iterator[PartThreads]:
    threads = PartThreads(2)
    threads.start()
    yield threads
    threads.stop()


@given(
    st.lists(st.integers(1, 77), min_size=1, max_size=70), st.integers(1, 16), st.integers(1, 300)
)
def test_parts_cost_about_as_much_or_there_are_none(
    costs: list[int], count: int, least: int
) -> None:
    slices = cut(costs, count, least)
    assert [cost for part in slices for cost in costs[part]] == costs
    share = sum(costs) / count
    if len(slices) > 1:
        assert len(slices) == count
        assert share >= least
        assert max(sum(costs[part]) for part in slices) <= UNEVEN * share


@pytest.mark.parametrize(
    ("costs", "sizes"),
    [([77], [1]), ([77, 8], [2]), ([30, 30, 30], [3]), ([30] * 4, [2, 2]), ([1] * 4, [4])],
)
def test_what_is_small_or_uneven_stays_whole(costs: list[int], sizes: list[int]) -> None:
    assert [part.stop - part.start for part in cut(costs, 2, 20)] == sizes


def test_each_thread_has_one_core_and_others_have_all(parts: PartThreads) -> None:
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


def test_many_cores_get_no_parts_and_stopped_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "MOST_CORES", 0)
    threads = PartThreads()
    threads.start()
    assert threads.count == 1
    others = set(threading.enumerate())
    threads = PartThreads(2)
    assert threads.count == 1
    threads.start()
    mine = set(threading.enumerate()) - others
    assert (threads.count, len(mine)) == (2, 2)
    threads.stop()
    for thread in mine:
        thread.join(10)
    assert not any(thread.is_alive() for thread in mine)
    assert threads.count == 1


class Item:
    """Can be looked at weakly."""


def test_an_error_is_raised_when_all_have_ended_and_holds_no_items(parts: PartThreads) -> None:
    items = [Item(), Item()]
    seen = [weakref.ref(item) for item in items]
    ended = threading.Event()

    def fail(item: Item) -> None:
        raise ValueError(f"no {type(item)}")

    def works() -> list[Any]:
        return [lambda item=item: fail(item) for item in items]

    told = ""
    gc.disable()
    try:
        try:
            parts.run([*works(), ended.set])
        except ValueError as error:  # pytest.raises would keep its frames
            told = str(error)
        assert "no" in told
        assert ended.is_set()
        items.clear()
        parts.run([lambda: None, lambda: None])
        assert [item() for item in seen] == [None, None]
    finally:
        gc.enable()
    assert parts.run([lambda: 1, lambda: 2]) == [1, 2]


class Counting(TorchEngine):
    """Tells of what size the parts were, and on which threads they ran."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.sizes: list[int] = []
        self.threads: list[str] = []

    def _run(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        self.sizes.append(len(batch))
        self.threads.append(threading.current_thread().name)
        return super()._run(batch)


@pytest.mark.parametrize(
    ("kind", "tower", "cut_to"),
    [
        ("clip", Tower.VISION, 2),
        ("siglip", Tower.TEXT, 2),
        ("timm-vit", Tower.VISION, 2),
        ("xlm-roberta", Tower.TEXT, 2),
        ("resnet", Tower.VISION, 2),
        ("convnext", Tower.VISION, 1),  # layers of a library
    ],
)
def test_which_batches_are_cut(
    kind: str,
    tower: Tower,
    cut_to: int,
    parts: PartThreads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tower_source(kind, tower)
    items = [inputs_of(source, 1)[0]] * 6
    engine = Counting(source, "fp32", parts=parts)
    whole = engine.run(items)
    assert engine.sizes == [6]
    monkeypatch.setattr(torch_engine, "LEAST_PRODUCTS", 1.0)
    monkeypatch.setattr(torch_engine, "LEAST_IMAGES", 1)
    cut = engine.run(items)
    assert sorted(engine.sizes[1:]) == [6 // cut_to] * cut_to
    np.testing.assert_allclose(cut, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "tower"),
    [
        ("clip", Tower.VISION),
        ("siglip", Tower.TEXT),
        ("timm-vit", Tower.VISION),
        ("xlm-roberta", Tower.TEXT),
        ("resnet", Tower.VISION),
    ],
)
def test_small_batches_are_computed_on_one_core_and_large_ones_on_all(
    kind: str, tower: Tower, parts: PartThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tower_source(kind, tower)
    items = inputs_of(source, 1)
    engine = Counting(source, "fp32", parts=parts)
    small = engine.run(items)
    monkeypatch.setattr(torch_engine, "MOST_ALONE", 0.0)
    large = engine.run(items)
    assert [name.startswith("hotclip-device-part-") for name in engine.threads] == [True, False]
    np.testing.assert_allclose(small, large, atol=1e-5)


def test_products_of_a_resnet_are_those_of_its_convolutions() -> None:
    source = tower_source("resnet", Tower.VISION)
    counted = 0

    def count(module: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal counted
        weight = module.get_parameter("weight")
        counted += weight.numel() * output.shape[2] * output.shape[3]

    visual: Any = source.model.visual
    hooks = [
        module.register_forward_hook(count)
        for module in visual.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    try:
        with torch.inference_mode():
            visual(torch.zeros(1, 3, *_size(source)))
    finally:
        for hook in hooks:
            hook.remove()
    tower: Any = TorchEngine(source, "fp32")._images
    assert tower.products == counted


def _size(source: Any) -> tuple[int, int]:
    size = source.preprocess.size
    return (size, size) if isinstance(size, int) else size
