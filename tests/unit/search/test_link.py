"""The socket between the server and the vector process, on either event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from hotclip_server.search import wire
from hotclip_server.search.link import Link

Frames = list[tuple[dict[str, Any], bytes]]


def on_either_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The server and its vector process run on uvloop where it is installed."""

    @pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, uvloop.Loop])
    def run(loop: type[asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def kept(frames: Frames) -> Any:
    """Puts what comes there."""
    return lambda _, header, body: frames.append((header, body))


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what a callback changes
            await asyncio.sleep(0.001)


@on_either_loop
async def test_frames_come_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    answers: Frames = []
    there = await Link.over(theirs, lambda link, *frame: link.send(wire.pack(*frame)))
    here = await Link.over(ours, kept(answers))
    sizes = [0, 1, 5 << 20, 3, 1 << 18, 70_000, 0]
    sent: Frames = [({"n": n}, bytes([n]) * size) for n, size in enumerate(sizes)]
    for header, body in sent:
        here.send(wire.pack(header, body))
    await until(lambda: len(answers) == len(sent))
    assert answers == sent
    here.close()
    await there.ended()
    there.close()


@on_either_loop
async def test_a_sender_is_held_back() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    link = await Link.over(ours, kept([]))
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
    link.close()
    theirs.close()


@on_either_loop
async def test_finished_it_has_sent_everything_and_takes_nothing_more() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    came: Frames = []
    link = await Link.over(ours, kept(came))
    frame = wire.pack({"n": 1}, bytes(8 << 20))
    link.send(frame)
    finishing = asyncio.create_task(link.finish())
    await asyncio.sleep(0.01)
    theirs.send(wire.pack({"n": 2}))
    with pytest.raises(ConnectionError):
        link.send(frame)
    loop, rest = asyncio.get_running_loop(), len(frame)
    while rest:
        rest -= len(await loop.sock_recv(theirs, 1 << 20))
    async with asyncio.timeout(30):
        await finishing
    assert came == []
    theirs.close()


@on_either_loop
async def test_without_the_other_end_it_ends() -> None:
    ours, theirs = socket.socketpair()
    came: Frames = []
    link = await Link.over(ours, kept(came))
    frame = wire.pack({"n": 1}, b"whole")
    theirs.sendall(frame + frame[:-1])
    link.send(wire.pack({}, bytes(8 << 20)))
    waiting = asyncio.create_task(link.room())
    await until(lambda: came)
    theirs.close()
    async with asyncio.timeout(30):
        await link.ended()
    assert came == [({"n": 1}, b"whole")]
    with pytest.raises(ConnectionError):
        await waiting
    with pytest.raises(ConnectionError):
        link.send(frame)
    link.close()


@on_either_loop
async def test_it_ends_if_the_other_end_dies_with_what_it_had_not_read() -> None:
    """A process that is killed: the system resets the connection, and what came before counts."""
    ours, theirs = socket.socketpair()
    came: Frames = []
    link = await Link.over(ours, kept(came))
    link.send(wire.pack({"n": 0}))  # never read
    frame = wire.pack({"n": 1}, bytes(1000))
    theirs.sendall(frame + frame[:500])
    theirs.close()
    async with asyncio.timeout(30):
        await link.ended()
    assert came in ([], [({"n": 1}, bytes(1000))])  # a reset may take what was not read with it


@on_either_loop
async def test_what_is_no_frame_ends_it() -> None:
    ours, theirs = socket.socketpair()
    link = await Link.over(ours, kept([]))
    theirs.sendall(bytes([255] * 8))
    with pytest.raises(ValueError, match="bug"):
        await link.ended()
    with pytest.raises(ConnectionError):
        link.send(b"")
    theirs.close()


@on_either_loop
async def test_closed_in_the_middle_it_hands_over_no_more() -> None:
    ours, theirs = socket.socketpair()
    came: Frames = []

    def first(link: Link, header: dict[str, Any], body: bytes) -> None:
        came.append((header, body))
        link.close()

    link = await Link.over(ours, first)
    theirs.sendall(2 * wire.pack({"n": 1}))
    await link.ended()
    assert came == [({"n": 1}, b"")]
    link.close()
    theirs.close()
