"""How the gRPC server is put together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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
    assert not registered


async def test_a_handler_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each call, as by an interceptor."""
    given: list[grpc.GenericRpcHandler] = []
    make = grpc.aio.server

    def noted(**options: Any) -> grpc.aio.Server:
        given.extend(options["handlers"])
        assert not options.get("interceptors")
        return make(**options)

    monkeypatch.setattr(grpc.aio, "server", noted)
    make_server(ServerConfig(), Drain(), Health(SERVICE_NAMES), ())
    (routes,) = given

    def handler(method: str) -> object:
        call: Any = SimpleNamespace(method=f"/{method}")
        return routes.service(call)

    known = ("hotclip.v1.EncodeService/Encode", "grpc.health.v1.Health/Check")
    handlers = [handler(method) for method in known]
    assert [handler(method) for method in known] == handlers
    assert handlers[0] is not handlers[1]
    # Of what callers make up nothing is kept.
    assert handler("no.Service/At") is not handler("no.Service/At")
