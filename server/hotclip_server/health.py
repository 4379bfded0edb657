"""grpc.health.v1.

The stock asyncio servicer writes to every watcher inside `set`, so one client that never
reads blocks it for all. Here a change is only noted and wakes the watchers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotclip_server.errors import NotFound

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # no stubs
    """One state for all services: SERVING while ready and moving. Event loop only.

    Args:
        services: Full names that may be asked for, besides "" (the server).
    """

    def __init__(self, services: Sequence[str] = ()) -> None:
        self._services = frozenset(services) | {""}
        self._ready = False
        self._moving = True
        self._changed = asyncio.Event()

    def set_ready(self, ready: bool) -> None:
        """Ready: started and not stopping. Never waits for a watcher."""
        self._ready = ready
        self._wake()

    def set_moving(self, moving: bool) -> None:
        """Moving: encoding has not stalled. Never waits for a watcher."""
        self._moving = moving
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 - named by the proto
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The present state; NOT_FOUND for a service that is not there."""
        if request.service not in self._services:
            raise NotFound(f"no service {request.service!r}")
        return health_pb2.HealthCheckResponse(status=self._state(request.service))

    async def Watch(  # noqa: N802 - named by the proto
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The present state, then every change."""
        told = None
        while True:
            changed = self._changed
            state = self._state(request.service)
            if state != told:
                told = state
                yield health_pb2.HealthCheckResponse(status=state)
                # A slow reader may have missed changes meanwhile: look again.
                continue
            await changed.wait()

    def _state(self, service: str) -> int:
        if service not in self._services:
            return int(SERVICE_UNKNOWN)
        return int(SERVING if self._ready and self._moving else NOT_SERVING)
