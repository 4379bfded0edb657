"""The batcher's policy, one rule a test."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from hotclip_server.batching.isolate import EncodeFailed
from hotclip_server.batching.queue import AGED_EVERY, AGED_S
from hotclip_server.batching.ticket import Demand, Priority
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)

from .fakes import item, make_batcher, number_of, settle, version


def numbers(rows):
    return [row if isinstance(row, Exception) else int(row[0]) for row in rows]


async def test_one_item_runs_at_once():
    batcher, device, _ = make_batcher()
    rows = await batcher.encode(version("a"), [item(7)], deadline=None)
    assert numbers(rows) == [7]
    assert [batch.numbers for batch in device.batches] == [[7]]


async def test_requests_of_one_turn_of_the_loop_share_a_batch():
    batcher, device, _ = make_batcher(max_batch=8)
    live = version("a")
    await asyncio.gather(*(batcher.encode(live, [item(n)], deadline=None) for n in range(5)))
    assert [batch.numbers for batch in device.batches] == [[0, 1, 2, 3, 4]]


async def test_nothing_is_nothing():
    batcher, device, _ = make_batcher()
    assert await batcher.encode(version("a"), [], deadline=None) == []
    assert not device.batches


async def test_requests_that_come_while_the_device_works_share_the_next_batch():
    batcher, device, _ = make_batcher(max_batch=8)
    device.gate = asyncio.Semaphore(0)
    live = version("a")
    calls = []
    for n in range(5):
        calls.append(asyncio.create_task(batcher.encode(live, [item(n)], deadline=None)))
        await settle()
    device.gate.release()
    device.gate.release()
    assert [numbers(rows) for rows in await asyncio.gather(*calls)] == [[n] for n in range(5)]
    assert sorted(len(batch.numbers) for batch in device.batches) == [1, 4]


async def test_a_batch_has_one_version_and_one_tower():
    batcher, device, _ = make_batcher(max_batch=8)
    device.gate = asyncio.Semaphore(0)
    old, new = version("a"), version("b")
    calls = [
        batcher.encode(old, [item(0), item(1, Tower.VISION), item(2)], deadline=None),
        batcher.encode(new, [item(3), item(4, Tower.VISION)], deadline=None),
    ]
    running = asyncio.gather(*calls)
    await settle()
    for _ in range(8):
        device.gate.release()
    answers = await running
    assert [numbers(rows) for rows in answers] == [[0, 1, 2], [3, 4]]
    for batch in device.batches:
        expected = {0, 1, 2} if batch.encoder is old.encoder else {3, 4}
        assert set(batch.numbers) <= expected
        vision = {number in (1, 4) for number in batch.numbers}
        assert vision == {batch.tower is Tower.VISION}


async def test_interactive_goes_first_and_bulk_ages():
    batcher, device, clock = make_batcher(max_batch=1)
    device.gate = asyncio.Semaphore(0)
    live = version("a")
    tasks = [asyncio.create_task(batcher.encode(live, [item(0)], deadline=None))]
    await settle()
    tasks += [
        asyncio.create_task(
            batcher.encode(live, [item(number)], deadline=None, priority=Priority.BULK)
        )
        for number in (100, 101)
    ]
    await settle()
    clock.now += AGED_S
    tasks += [
        asyncio.create_task(batcher.encode(live, [item(number)], deadline=None))
        for number in range(1, 2 * AGED_EVERY)
    ]
    await settle()
    for _ in tasks:
        device.gate.release()
    await asyncio.gather(*tasks)
    order = [batch.numbers[0] for batch in device.batches]
    assert [order.index(number) for number in (100, 101)] == [AGED_EVERY - 1, 2 * AGED_EVERY - 1]
    assert [number for number in order if number < 100] == list(range(2 * AGED_EVERY))


async def test_the_oldest_head_of_all_queues_is_next():
    batcher, device, clock = make_batcher(max_batch=2)
    device.gate = asyncio.Semaphore(0)
    a, b = version("a"), version("b")
    tasks = []
    for who, number in ((a, 0), (b, 1), (a, 2), (b, 3), (a, 4)):
        tasks.append(asyncio.create_task(batcher.encode(who, [item(number)], deadline=None)))
        await settle()
        clock.now += 0.01
    for _ in tasks:
        device.gate.release()
    await asyncio.gather(*tasks)
    assert [batch.numbers for batch in device.batches] == [[0], [1, 3], [2, 4]]


async def test_a_full_queue_refuses_the_whole_request():
    batcher, device, _ = make_batcher(items=4)
    device.gate = asyncio.Semaphore(0)
    live = version("a")
    first = asyncio.create_task(batcher.encode(live, [item(n) for n in range(3)], deadline=None))
    await settle()
    with pytest.raises(Unavailable) as refused:
        await batcher.encode(live, [item(8), item(9)], deadline=None)
    assert refused.value.reason == "QUEUE_FULL"
    assert 0.05 <= refused.value.retry_after_s <= 5
    assert batcher.ledger.items == 3
    device.gate.release()
    await first
    assert batcher.ledger.items == 0


async def test_bytes_count_too():
    batcher, _, _ = make_batcher(nbytes=8 * 10)
    live = version("a")
    with pytest.raises(ResourceExhausted) as refused:
        await batcher.encode(live, [item(0, length=11)], deadline=None)
    assert refused.value.reason == "ITEM_TOO_LARGE"
    assert numbers(await batcher.encode(live, [item(0, length=10)], deadline=None)) == [0]


async def test_a_request_larger_than_the_budget_is_answered_in_parts():
    batcher, device, _ = make_batcher(items=8, max_batch=64)
    live = version("a")
    rows = await batcher.encode(live, [item(n) for n in range(50)], deadline=None)
    assert numbers(rows) == list(range(50))
    assert max(len(batch.numbers) for batch in device.batches) <= 8
    assert batcher.ledger.items == 0


async def test_cancelled_items_never_reach_the_device():
    batcher, device, _ = make_batcher(max_batch=8)
    device.gate = asyncio.Semaphore(0)
    live = version("a")
    first = asyncio.create_task(batcher.encode(live, [item(0)], deadline=None))
    await settle()
    doomed = asyncio.create_task(batcher.encode(live, [item(1), item(2)], deadline=None))
    other = asyncio.create_task(batcher.encode(live, [item(3)], deadline=None))
    await settle()
    doomed.cancel()
    await settle()
    assert doomed.cancelled()
    assert batcher.ledger.items == 2
    device.gate.release()
    device.gate.release()
    assert numbers(await first) + numbers(await other) == [0, 3]
    assert [batch.numbers for batch in device.batches] == [[0], [3]]


async def test_expired_items_never_reach_the_device():
    batcher, device, clock = make_batcher(max_batch=8)
    device.gate = asyncio.Semaphore(0)
    live = version("a")
    first = asyncio.create_task(batcher.encode(live, [item(0)], deadline=None))
    await settle()
    late = asyncio.create_task(batcher.encode(live, [item(1)], deadline=clock.now + 1))
    await settle()
    clock.now += 2
    device.gate.release()
    await first
    with pytest.raises(DeadlineExceeded):
        await late
    with pytest.raises(DeadlineExceeded):
        await batcher.encode(live, [item(1)], deadline=clock.now)
    assert [batch.numbers for batch in device.batches] == [[0]]
    assert batcher.ledger.items == 0


async def test_only_the_culprit_fails(caplog):
    batcher, device, _ = make_batcher(max_batch=32)
    device.fails = lambda prepared: number_of(prepared) == 13
    rows = await batcher.encode(version("a"), [item(n) for n in range(32)], deadline=None)
    assert isinstance(rows[13], EncodeFailed)
    assert numbers(rows)[:13] + numbers(rows)[14:] == [n for n in range(32) if n != 13]
    assert "the device fails" in caplog.text
    assert batcher.figures.failed_items == 1


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (1, 5)])
async def test_a_wrong_number_of_outputs_is_an_error(shape):
    batcher, device, _ = make_batcher()

    async def run(encoder, tower, batch):
        return np.zeros(shape, np.float32)

    device.run = run
    rows = await batcher.encode(version("a"), [item(0), item(1)], deadline=None)
    assert all(isinstance(row, EncodeFailed) for row in rows)


async def test_a_row_that_is_not_finite_is_an_error():
    batcher, device, _ = make_batcher()

    async def run(encoder, tower, batch):
        rows = np.ones((len(batch), 4), np.float32)
        rows[1, 2] = np.inf
        return rows

    device.run = run
    rows = await batcher.encode(version("a"), [item(n) for n in range(3)], deadline=None)
    assert [isinstance(row, EncodeFailed) for row in rows] == [False, True, False]


async def test_a_stall_is_measured_and_ends():
    batcher, device, clock = make_batcher()
    device.gate = asyncio.Semaphore(0)
    live = version("a")
    clock.now += 1000
    assert batcher.stalled_for_s() == 0
    call = asyncio.create_task(batcher.encode(live, [item(0)], deadline=None))
    await settle()
    assert batcher.stalled_for_s() == 0
    clock.now += 50
    assert batcher.stalled_for_s() == 50
    # More work does not hide that nothing is done.
    more = asyncio.create_task(batcher.encode(live, [item(1)], deadline=None))
    await settle()
    assert batcher.stalled_for_s() == 50
    call.cancel()
    await settle()
    assert batcher.stalled_for_s() == 50
    device.gate.release()
    device.gate.release()
    await more
    await settle()
    assert batcher.stalled_for_s() == 0


async def test_answers_that_need_no_device_do_not_hide_that_it_hangs():
    batcher, device, clock = make_batcher()
    device.gate = asyncio.Semaphore(0)
    live, bad = version("a"), InvalidArgument("no image")
    hangs = asyncio.create_task(batcher.encode(live, [item(0)], deadline=None))
    await settle()
    clock.now += 50

    async def feed(ticket, part):
        batcher.settle(ticket, 0, bad)

    demands = [Demand(Tower.VISION, 1, 8)]
    answer = await batcher.run(live, demands, feed, deadline=None, priority=Priority.INTERACTIVE)
    assert answer.rows == [bad]
    assert batcher.stalled_for_s() == 50
    device.gate.release()
    await hangs
    await settle()
    assert batcher.stalled_for_s() == 0


async def test_stop_fails_what_waits_and_refuses_more():
    batcher, device, _ = make_batcher(max_batch=1)
    device.gate = asyncio.Semaphore(0)
    live = version("a")
    calls = [asyncio.create_task(batcher.encode(live, [item(n)], deadline=None)) for n in (0, 1)]
    await settle()
    await batcher.stop()
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(answer, Unavailable)
    with pytest.raises(Unavailable):
        await batcher.encode(live, [item(2)], deadline=None)
    assert batcher.ledger.items == 0


async def test_an_emptied_queue_keeps_no_version_alive():
    batcher, _, _ = make_batcher()
    await batcher.encode(version("a"), [item(0)], deadline=None)
    await settle()
    assert batcher._queues._lanes == {}


async def test_a_fault_of_the_loop_fails_who_waits_and_not_who_comes_later(caplog):
    batcher, device, _ = make_batcher()
    live = version("a")
    take = batcher._queues.take

    def broken(now: float) -> None:
        take(now)  # the items are out of their queue, and nobody runs them
        raise ZeroDivisionError

    batcher._queues.take = broken
    with pytest.raises(EncodeFailed):
        await batcher.encode(live, [item(1)], deadline=None)
    batcher._queues.take = take
    assert "the batch loop failed" in caplog.text
    assert batcher.ledger.items == 0
    assert numbers(await batcher.encode(live, [item(1)], deadline=None)) == [1]
    assert [batch.numbers for batch in device.batches] == [[1]]


async def test_it_is_told_when_the_first_comes_and_when_the_last_is_answered():
    told: list[bool] = []
    batcher, device, _ = make_batcher(max_batch=1, tell=told.append)
    device.gate = asyncio.Semaphore(0)
    live = version("a")
    calls = [asyncio.create_task(batcher.encode(live, [item(n)], deadline=None)) for n in range(3)]
    await settle()
    assert told == [True]
    calls[2].cancel()
    device.gate.release()
    await settle()
    assert told == [True]
    device.gate.release()
    await asyncio.gather(*calls, return_exceptions=True)
    assert told == [True, False]
    assert await batcher.encode(live, [], deadline=None) == []
    assert told == [True, False]
    last = asyncio.create_task(batcher.encode(live, [item(3)], deadline=None))
    await settle()
    assert told == [True, False, True]
    last.cancel()
    await settle()
    assert told == [True, False, True, False]
