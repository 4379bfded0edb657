"""How the gRPC server is put together."""

from __future__ import annotations

import grpc
import pytest

from hotclip_server.config import ServerConfig
from hotclip_server.drain import Drain
from hotclip_server.health import Health
from hotclip_server.rpc import SERVICE_NAMES, make_server


async def test_methods_are_found_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is registered besides costs a call of any method some time."""
    registered: list[str] = []
    kind = type(grpc.aio.server())
    register = kind.add_registered_method_handlers

    def noted(server: grpc.aio.Server, service: str, handlers: object) -> None:
        registered.append(service)
        register(server, service, handlers)

    monkeypatch.setattr(kind, "add_registered_method_handlers", noted)
    make_server(ServerConfig(), Drain(), Health(SERVICE_NAMES), ())
    assert not set(registered) & set(SERVICE_NAMES)
