"""Who goes next onto the pool of threads."""

from __future__ import annotations

import asyncio

from hotclip_server.batching.ticket import Priority
from hotclip_server.turns import LESS_URGENT_EVERY, Turns

QUERY, BULK = Priority


async def waiting(turns: Turns, order: list[str], *names: str) -> list[asyncio.Task[None]]:
    """Each waits for its turn in its class, "q..." or "b...", and says when it came."""

    async def wait(name: str) -> None:
        await turns.take(QUERY if name.startswith("q") else BULK)
        order.append(name)

    tasks = [asyncio.create_task(wait(name)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def hand_over(turns: Turns, times: int) -> None:
    for _ in range(times):
        turns.give_back()
        await asyncio.sleep(0)


async def test_no_more_than_there_are_places_and_the_urgent_before_the_rest() -> None:
    turns, order = Turns(2), list[str]()
    tasks = await waiting(turns, order, "b1", "b2", "b3", "q1", "b4", "q2")
    assert order == ["b1", "b2"]
    await hand_over(turns, 4)
    assert order == ["b1", "b2", "q1", "q2", "b3", "b4"]
    await hand_over(turns, 2)
    tasks += await waiting(turns, order, "b5", "b6", "b7")
    assert order[6:] == ["b5", "b6"]
    await hand_over(turns, 1)
    await asyncio.gather(*tasks)


async def test_bulk_does_not_starve() -> None:
    turns, order = Turns(1), list[str]()
    queries = [f"q{number}" for number in range(4 * LESS_URGENT_EVERY)]
    tasks = await waiting(turns, order, "q", "b1", "b2", *queries)
    await hand_over(turns, 2 * LESS_URGENT_EVERY)
    assert [order.index("b1"), order.index("b2")] == [LESS_URGENT_EVERY, 2 * LESS_URGENT_EVERY]
    await hand_over(turns, len(queries))
    await asyncio.gather(*tasks)


async def test_who_goes_away_takes_no_place_along() -> None:
    turns, order = Turns(1), list[str]()
    first, second, third, fourth = await waiting(turns, order, "q1", "q2", "q3", "q4")
    second.cancel()
    await asyncio.sleep(0)
    turns.give_back()  # to the third, which goes before it hears of it
    third.cancel()
    await asyncio.wait([first, second, third, fourth])
    assert order == ["q1", "q4"]
    assert (second.cancelled(), third.cancelled()) == (True, True)
    turns.give_back()
    await asyncio.gather(*await waiting(turns, order, "b1"))
