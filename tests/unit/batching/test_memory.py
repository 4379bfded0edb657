"""What the batcher keeps is a small multiple of what waits."""

from __future__ import annotations

import asyncio
import gc

from hotclip_server.batching.entry import Entry
from hotclip_server.batching.ticket import Priority, Ticket

from .fakes import item, make_batcher, settle, version

BULK = 6000
CLIENTS = 3
ROUNDS = 1000
ITEMS = 8


def alive(kind: type) -> int:
    gc.collect()
    return sum(type(found) is kind for found in gc.get_objects())


async def test_what_is_answered_does_not_stay_while_bulk_items_wait():
    batcher, _, _ = make_batcher(max_batch=ITEMS, items=2 * BULK)
    live = version("a")
    bulk = [item(number) for number in range(BULK)]
    waiting = asyncio.create_task(batcher.encode(live, bulk, deadline=None, priority=Priority.BULK))
    await settle()

    async def client(name: int) -> None:
        for turn in range(ROUNDS):
            first = BULK + ITEMS * (CLIENTS * turn + name)
            items = [item(number) for number in range(first, first + ITEMS)]
            rows = await batcher.encode(live, items, deadline=None)
            assert [int(row[0]) for row in rows] == list(range(first, first + ITEMS))

    await asyncio.gather(*(client(name) for name in range(CLIENTS)))
    assert not waiting.done()
    assert batcher.ledger.items > BULK // 3
    assert CLIENTS * ROUNDS * ITEMS == 4 * BULK
    # The request itself keeps each of its own; as many others may wait to be dropped.
    assert alive(Entry) <= 2 * BULK + ITEMS * CLIENTS
    assert alive(Ticket) <= 2 * CLIENTS
    waiting.cancel()
    await settle()
    await batcher.stop()
