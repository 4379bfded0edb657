"""The gRPC server: its options, its routes, and every service of hotclip.v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from hotclip_proto.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    dataset_pb2,
    dataset_pb2_grpc,
    drift_pb2,
    drift_pb2_grpc,
    encode_pb2,
    encode_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    finetune_pb2,
    finetune_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)
from hotclip_server.boundary import ErrorBoundary, Handler, unknown_method
from hotclip_server.config import ServerConfig
from hotclip_server.drain import Drain
from hotclip_server.frontends.proxy import Proxy
from hotclip_server.health import Health

# Service, its base class and how it is registered. A service that is not given to
# `make_server` is registered with its base class, which answers UNIMPLEMENTED.
_SERVICES: tuple[tuple[Any, type, Any], ...] = (
    (
        encode_pb2.DESCRIPTOR.services_by_name["EncodeService"],
        encode_pb2_grpc.EncodeServiceServicer,
        encode_pb2_grpc.add_EncodeServiceServicer_to_server,
    ),
    (
        model_pb2.DESCRIPTOR.services_by_name["ModelService"],
        model_pb2_grpc.ModelServiceServicer,
        model_pb2_grpc.add_ModelServiceServicer_to_server,
    ),
    (
        finetune_pb2.DESCRIPTOR.services_by_name["FineTuneService"],
        finetune_pb2_grpc.FineTuneServiceServicer,
        finetune_pb2_grpc.add_FineTuneServiceServicer_to_server,
    ),
    (
        job_pb2.DESCRIPTOR.services_by_name["JobService"],
        job_pb2_grpc.JobServiceServicer,
        job_pb2_grpc.add_JobServiceServicer_to_server,
    ),
    (
        dataset_pb2.DESCRIPTOR.services_by_name["DatasetService"],
        dataset_pb2_grpc.DatasetServiceServicer,
        dataset_pb2_grpc.add_DatasetServiceServicer_to_server,
    ),
    (
        artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
        artifact_pb2_grpc.ArtifactServiceServicer,
        artifact_pb2_grpc.add_ArtifactServiceServicer_to_server,
    ),
    (
        search_pb2.DESCRIPTOR.services_by_name["SearchService"],
        search_pb2_grpc.SearchServiceServicer,
        search_pb2_grpc.add_SearchServiceServicer_to_server,
    ),
    (
        feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"],
        feedback_pb2_grpc.FeedbackServiceServicer,
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server,
    ),
    (
        drift_pb2.DESCRIPTOR.services_by_name["DriftService"],
        drift_pb2_grpc.DriftServiceServicer,
        drift_pb2_grpc.add_DriftServiceServicer_to_server,
    ),
    (
        server_pb2.DESCRIPTOR.services_by_name["ServerService"],
        server_pb2_grpc.ServerServiceServicer,
        server_pb2_grpc.add_ServerServiceServicer_to_server,
    ),
)

_ENCODE_SERVICE = str(encode_pb2.DESCRIPTOR.services_by_name["EncodeService"].full_name)
SERVICE_NAMES = tuple(descriptor.full_name for descriptor, _, _ in _SERVICES)


BUSY_STREAMS = 1 << 20


def _streaming_requests() -> dict[str, bool]:
    """Of every method, by its full name: whether a call of it sends many messages."""
    described = [descriptor for descriptor, _, _ in _SERVICES]
    described.append(health_pb2.DESCRIPTOR.services_by_name["Health"])
    described.append(reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"])
    return {
        f"/{service.full_name}/{method.name}": method.client_streaming
        for service in described
        for method in service.methods
    }


def make_server(
    config: ServerConfig, drain: Drain, health: Health, services: tuple[object, ...]
) -> grpc.aio.Server:
    """Makes the server, not yet listening.

    Args:
        config: Message size and calls a connection.
        drain: Ends streams at shutdown.
        health: Answers grpc.health.v1.
        services: Servicers; services without one answer UNIMPLEMENTED.
    """
    routes = _Routes(ErrorBoundary(drain, config.max_message_bytes))
    for _, base, add in _SERVICES:
        given = [service for service in services if isinstance(service, base)]
        add(given[0] if given else base(), routes)
    health_pb2_grpc.add_HealthServicer_to_server(health, routes)
    names = (
        *SERVICE_NAMES,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    )
    reflecting = reflection.aio.ReflectionServicer(names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting, routes)
    return _server(
        routes,
        config.max_message_bytes,
        # A front end sends the calls of all its connections on one.
        BUSY_STREAMS if config.frontends else config.max_concurrent_streams,
        share_port=False,
    )


def make_frontend_server(
    config: ServerConfig, errors: ErrorBoundary, encode: object, proxy: Proxy
) -> grpc.aio.Server:
    """Makes the server of a front end, not yet listening.

    Args:
        config: Message size and calls a connection.
        errors: Wraps what is answered here.
        encode: Servicer of EncodeService.
        proxy: Takes every other call.
    """
    routes = _Routes(errors)
    encode_pb2_grpc.add_EncodeServiceServicer_to_server(encode, routes)  # type: ignore[arg-type]  # given as an object, as to `make_server`
    here = f"/{_ENCODE_SERVICE}/"
    for method, many in _streaming_requests().items():
        if not method.startswith(here):
            routes.add(method, proxy.handler(method, many=many))
    return _server(routes, config.max_message_bytes, config.max_concurrent_streams, share_port=True)


class _Routes(grpc.GenericRpcHandler):
    """The handler of each method, with its errors mapped; made at its first call, not at each as
    by an interceptor.

    All that gRPC is given: for each method that is registered with it, grpc.aio keeps a task that
    waits for a call of it, and at each call it waits for all of these anew: an eighth of a
    millisecond for as many methods as there are here.
    """

    def __init__(self, errors: ErrorBoundary) -> None:
        self._errors = errors
        self._services: list[grpc.GenericRpcHandler] = []
        self._handlers: dict[str, Handler] = {}

    def add(self, method: str, handler: Handler) -> None:
        """Adds what answers a method as it is, by the full name of the method."""
        self._handlers[method] = handler

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """As on a server."""
        self._services += handlers

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, object]) -> None:
        """Nothing: they are among the generic ones."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        """See `grpc.GenericRpcHandler`."""
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is not None:
            return handler
        for service in self._services:
            found = service.service(handler_call_details)
            if found is not None:
                handler = self._handlers[method] = self._errors.wrapped(method, found)
                return handler
        return unknown_method(method)


def _server(
    routes: _Routes, message_bytes: int, streams: int, *, share_port: bool
) -> grpc.aio.Server:
    return grpc.aio.server(
        handlers=[routes],
        options=[
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_send_message_length", message_bytes),
            ("grpc.max_concurrent_streams", streams),
            # Unless it is a front end, a second server on the port would take half of the
            # connections.
            ("grpc.so_reuseport", int(share_port)),
            # Clients ping every 30 s, also while they wait; the default answers with GOAWAY.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
    )


def listen(server: grpc.aio.Server, host: str, port: int) -> str:
    """Binds; gives "host:port" with the port that it got.

    Raises:
        OSError: the address is taken or not of this machine.
    """
    name = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{name}:{port}")
    except RuntimeError as error:
        raise OSError(f"can't listen on {name}:{port}: {error}") from None
    return f"{name}:{bound}"
