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
