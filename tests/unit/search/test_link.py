"""The socket between the server and the vector process."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from hotclip_server.search import wire
from hotclip_server.search.link import Link

Frames = list[tuple[dict[str, Any], bytes]]


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what a callback changes
            await asyncio.sleep(0.001)


async def test_frames_come_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    answers: Frames = []
    there = Link(theirs, lambda header, body: there.send(wire.pack(header, body)))
    here = Link(ours, lambda header, body: answers.append((header, body)))
    sizes = [0, 1, 5 << 20, 3, 1 << 18, 70_000, 0]
    sent: Frames = [({"n": n}, bytes([n]) * size) for n, size in enumerate(sizes)]
    for header, body in sent:
        here.send(wire.pack(header, body))
    await until(lambda: len(answers) == len(sent))
    assert answers == sent
    here.close()
    await there.ended()
    there.close()


async def test_a_sender_is_held_back() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    link = Link(ours, lambda header, body: None)
    frame = wire.pack({}, bytes(8 << 20))
    link.send(frame)
    link.send(frame)
    waiting = asyncio.create_task(link.room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    loop, came = asyncio.get_running_loop(), 0
    while came < 2 * len(frame):
        came += len(await loop.sock_recv(theirs, 1 << 20))
    await waiting
    await link.room(0)
    link.close()
    theirs.close()


async def test_without_the_other_end_it_ends() -> None:
    ours, theirs = socket.socketpair()
    came: Frames = []
    link = Link(ours, lambda header, body: came.append((header, body)))
    frame = wire.pack({"n": 1}, b"whole")
    theirs.sendall(frame + frame[:-1])
    link.send(wire.pack({}, bytes(8 << 20)))
    waiting = asyncio.create_task(link.room())
    await until(lambda: came)
    theirs.close()
    await link.ended()
    assert came == [({"n": 1}, b"whole")]
    with pytest.raises(ConnectionError):
        await waiting
    with pytest.raises(ConnectionError):
        link.send(frame)
    link.close()


async def test_what_is_no_frame_ends_it() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, lambda header, body: None)
    theirs.sendall(bytes([255] * 8))
    with pytest.raises(ValueError, match="bug"):
        await link.ended()
    with pytest.raises(ConnectionError):
        link.send(b"")
    theirs.close()


async def test_closed_in_the_middle_it_hands_over_no_more() -> None:
    ours, theirs = socket.socketpair()
    came: Frames = []

    def first(header: dict[str, Any], body: bytes) -> None:
        came.append((header, body))
        link.close()

    link = Link(ours, first)
    theirs.sendall(2 * wire.pack({"n": 1}))
    await link.ended()
    assert came == [({"n": 1}, b"")]
    link.close()
    theirs.close()
