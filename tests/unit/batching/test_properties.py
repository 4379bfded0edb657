"""Whatever comes in whatever order: nothing is lost, doubled, mixed or starved."""

from __future__ import annotations

import asyncio

import hypothesis.strategies as st
from hypothesis import given, settings

from hotclip_server.batching.isolate import EncodeFailed
from hotclip_server.batching.ticket import Priority
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import DeadlineExceeded, Unavailable

from .fakes import item, make_batcher, number_of, settle, version

REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "version": st.integers(0, 2),
            "towers": st.lists(st.sampled_from(Tower), min_size=1, max_size=9),
            "bulk": st.booleans(),
            "wait": st.integers(0, 3),
            "cancel_after": st.one_of(st.none(), st.integers(0, 6)),
            "deadline": st.one_of(st.none(), st.floats(0.001, 0.2)),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(
    requests=REQUESTS,
    max_batch=st.integers(1, 6),
    budget=st.integers(2, 40),
    culprits=st.sets(st.integers(0, 60), max_size=3),
)
def test_every_item_is_answered_once_by_its_version(requests, max_batch, budget, culprits):
    asyncio.run(scenario(requests, max_batch, budget, culprits))


async def scenario(requests, max_batch, budget, culprits):
    batcher, device, clock = make_batcher(max_batch=max_batch, items=budget)
    device.fails = lambda prepared: number_of(prepared) in culprits
    versions = [version(str(n)) for n in range(3)]
    owner, tower_of, tasks, next_number = {}, {}, [], 0
    for request in requests:
        live = versions[request["version"]]
        items = []
        for tower in request["towers"]:
            owner[next_number], tower_of[next_number] = live, tower
            items.append(item(next_number, tower))
            next_number += 1
        task = asyncio.create_task(
            batcher.encode(
                live,
                items,
                deadline=None if request["deadline"] is None else clock.now + request["deadline"],
                priority=Priority.BULK if request["bulk"] else Priority.INTERACTIVE,
            )
        )
        tasks.append((task, items))
        if request["cancel_after"] is not None:
            asyncio.get_running_loop().create_task(cancel_later(task, request["cancel_after"]))
        await settle(request["wait"])
        assert 0 <= batcher.ledger.items <= budget
    _, pending = await asyncio.wait([task for task, _ in tasks], timeout=20)
    assert not pending, "starved"
    await settle()
    answered = set()
    for task, items in tasks:
        if task.cancelled():
            continue
        if task.exception() is not None:
            assert isinstance(task.exception(), Unavailable | DeadlineExceeded)
            continue
        rows = task.result()
        assert len(rows) == len(items)
        for row, prepared in zip(rows, items, strict=True):
            number = number_of(prepared)
            answered.add(number)
            if number in culprits:
                assert isinstance(row, EncodeFailed)
            else:
                assert row[0] == number
    ran = [number for batch in device.batches for number in batch.numbers]
    assert answered <= set(ran)
    for batch in device.batches:
        assert {owner[number].encoder for number in batch.numbers} == {batch.encoder}
        assert {tower_of[number] for number in batch.numbers} == {batch.tower}
        assert len(batch.numbers) <= max_batch
    if not culprits:
        assert len(ran) == len(set(ran)), "an item ran twice"
    assert batcher.ledger.items == 0
    assert batcher.ledger.nbytes == 0
    assert batcher.stalled_for_s() == 0


async def cancel_later(task, turns):
    await settle(turns)
    task.cancel()


@settings(max_examples=100, deadline=None)
@given(
    max_batch=st.integers(1, 8),
    data=st.data(),
)
def test_batches_are_full(max_batch, data):
    """With everything queued while the device works, as few batches run as can."""
    counts = data.draw(st.lists(st.integers(1, max_batch), min_size=1, max_size=8))

    async def run():
        batcher, device, _ = make_batcher(max_batch=max_batch, items=1000)
        device.gate = asyncio.Semaphore(0)
        live = version("a")
        first = asyncio.create_task(batcher.encode(live, [item(0)], deadline=None))
        await settle()
        numbers = iter(range(1, 1000))
        calls = [
            asyncio.create_task(
                batcher.encode(live, [item(next(numbers)) for _ in range(count)], deadline=None)
            )
            for count in counts
        ]
        await settle()
        for _ in range(1 + sum(counts)):
            device.gate.release()
        await asyncio.gather(first, *calls)
        assert len(device.batches) == 1 + -(-sum(counts) // max_batch)

    asyncio.run(run())


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    items=st.integers(1, 20),
    nbytes=st.integers(50, 300),
)
def test_parts_cover_the_request_in_order(sizes, items, nbytes):
    async def run():
        batcher, _, _ = make_batcher(items=items, nbytes=nbytes)
        parts = batcher.ledger.parts(sizes)
        assert [at for part in parts for at in part] == list(range(len(sizes)))
        for part in parts:
            assert len(part) <= items
            assert sum(sizes[at] for at in part) <= nbytes

    asyncio.run(run())
