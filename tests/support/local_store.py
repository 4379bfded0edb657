"""The real vector engine in the test's own process: nothing to start, and a test can hold up or
end it between any two calls."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from hotclip_server.errors import NotFound
from hotclip_server.search.child import VectorProcess
from hotclip_server.search.edge import EdgeStore
from hotclip_server.search.shard import ShardNotFound


class Died(Exception):
    """As if the process had been killed: what was stored before stays, nothing comes after."""


class LocalStore(EdgeStore):
    """An EdgeStore that calls the engine instead of sending to it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._engine = VectorProcess(root)
        self.calls_left: int | None = None
        """Until it dies; None: it lives."""
        self.gates: dict[str, asyncio.Event] = {}
        """Calls of an operation wait here until the event is set."""
        self.waiting: set[str] = set()
        """Operations that wait."""

    async def start(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)

    async def close(self) -> None:
        for shard in self._engine._shards.values():
            await shard.close()

    async def _call(
        self, op: str, *, body: bytes = b"", timeout_s: float | None = None, **header: object
    ) -> tuple[Any, bytes]:
        if op in self.gates:
            self.waiting.add(op)
            await self.gates[op].wait()
        if self.calls_left is not None:
            if self.calls_left == 0:
                raise Died(op)
            self.calls_left -= 1
        try:
            return await self._engine._do({"op": op, **header}, body)
        except ShardNotFound as error:
            raise NotFound(str(error), reason="SHARD_NOT_FOUND") from error


class LateStore(LocalStore):
    """One that can hold answers back."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.late: dict[str, asyncio.Event] = {}
        """Answers of an operation wait here until the event is set."""
        self.calls: list[str] = []
        """Operations, each when it was asked for."""

    def hold(self, op: str) -> None:
        """Calls of an operation wait, and then their answers."""
        self.gates[op], self.late[op] = asyncio.Event(), asyncio.Event()

    async def held(self, op: str) -> None:
        """Returns when a call of it waits."""
        await self._until(op)

    async def do(self, op: str) -> None:
        """Lets the calls of it be done; returns when their answer waits."""
        self.gates[op].set()
        await self._until(f"late {op}")

    async def _until(self, name: str) -> None:
        async with asyncio.timeout(10):
            while name not in self.waiting:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.005)

    async def _call(
        self, op: str, *, body: bytes = b"", timeout_s: float | None = None, **header: object
    ) -> tuple[Any, bytes]:
        self.calls.append(op)
        answer = await super()._call(op, body=body, timeout_s=timeout_s, **header)
        if op in self.late:
            self.waiting.add(f"late {op}")
            await self.late[op].wait()
        return answer
