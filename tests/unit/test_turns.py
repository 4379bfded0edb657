"""Who goes next onto the pool of threads."""

from __future__ import annotations

import asyncio

from hotclip_server.batching.ticket import Priority
from hotclip_server.turns import LESS_URGENT_EVERY, Turns

QUERY, BULK = Priority


async def waiting(turns: Turns, order: list[str], *names: str) -> list[asyncio.Task[None]]:
    """Each waits for its turn and says when it came: "q..." are queries, "b..." bulk, in capitals
    if they are long."""

    async def wait(name: str) -> None:
        priority = QUERY if name[0] in "qQ" else BULK
        await turns.take(priority, short=name[0].islower())
        order.append(name)

    tasks = [asyncio.create_task(wait(name)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def hand_over(turns: Turns, times: int) -> None:
    for _ in range(times):
        turns.give_back()
        await asyncio.sleep(0)


async def test_the_urgent_before_the_rest() -> None:
    turns, order = Turns(1), list[str]()
    tasks = await waiting(turns, order, "b1", "b2", "b3", "q1", "b4", "q2")
    assert order == ["b1", "b2"]  # one runs, one waits in the pool
    await hand_over(turns, 4)
    assert order == ["b1", "b2", "q1", "q2", "b3", "b4"]
    await hand_over(turns, 2)
    tasks += await waiting(turns, order, "b5", "b6", "b7")
    assert order[6:] == ["b5", "b6"]
    await hand_over(turns, 1)
    await asyncio.gather(*tasks)


async def test_long_tasks_do_not_stand_in_the_pool() -> None:
    turns, order = Turns(2), list[str]()
    tasks = await waiting(turns, order, "B1", "B2", "B3", "B4", "q1", "Q2", "q3")
    assert order == ["B1", "B2", "q1"]  # a short query enters, a long one waits for a thread
    await hand_over(turns, 1)
    assert order[3:] == []  # and what came after it stays behind it
    await hand_over(turns, 1)
    assert order[3:] == ["Q2", "q3"]
    await hand_over(turns, 2)
    assert order[5:] == ["B3"]
    await hand_over(turns, 1)
    await asyncio.gather(*tasks)


async def test_bulk_does_not_starve() -> None:
    turns, order = Turns(1), list[str]()
    queries = [f"q{number}" for number in range(4 * LESS_URGENT_EVERY)]
    tasks = await waiting(turns, order, "q", "q'", "b1", "b2", *queries)
    await hand_over(turns, 2 * LESS_URGENT_EVERY)
    at = [order.index("b1"), order.index("b2")]
    assert at == [1 + LESS_URGENT_EVERY, 1 + 2 * LESS_URGENT_EVERY]
    await hand_over(turns, len(queries) - 2 * (LESS_URGENT_EVERY - 1))
    await asyncio.gather(*tasks)


async def test_a_long_task_of_bulk_does_not_starve_while_short_queries_find_room() -> None:
    turns, order = Turns(1), list[str]()
    tasks = await waiting(turns, order, "q", "B")
    for number in range(2 * LESS_URGENT_EVERY):
        tasks += await waiting(turns, order, f"q{number}")
        await hand_over(turns, 1)
    assert "B" in order
    await hand_over(turns, 4)
    await asyncio.gather(*tasks)


async def test_who_goes_away_takes_no_place_along() -> None:
    turns, order = Turns(1), list[str]()
    first, second, third, fourth = await waiting(turns, order, "Q1", "Q2", "Q3", "Q4")
    second.cancel()
    await asyncio.sleep(0)
    turns.give_back()  # to the third, which goes before it hears of it
    third.cancel()
    await asyncio.wait([first, second, third, fourth])
    assert order == ["Q1", "Q4"]
    assert (second.cancelled(), third.cancelled()) == (True, True)
    turns.give_back()
    await asyncio.gather(*await waiting(turns, order, "B1"))
