"""hotclip.v1.EncodeService."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

import grpc

from hotclip_proto.v1 import encode_pb2, encode_pb2_grpc, types_pb2
from hotclip_server.batching.ticket import Priority
from hotclip_server.drain import Drain
from hotclip_server.errors import HotclipError
from hotclip_server.interceptors import grpc_code, internal_error
from hotclip_server.models.residents import Pin
from hotclip_server.pipeline import EncodePipeline
from hotclip_server.ranking import rank
from hotclip_server.services.ordered import answer_in_order
from hotclip_server.services.vectors import check_dtype, item_errors, pack

Context = grpc.aio.ServicerContext[Any, Any]

STREAM_METHOD = "/hotclip.v1.EncodeService/EncodeStream"


class Versions(Protocol):
    """Where a request gets its version; `ModelRegistry` is one."""

    def pin(self, model: str = "", version: str = "", expected_space_id: str = "") -> Pin:
        """Holds the version that answers."""


class EncodeService(encode_pb2_grpc.EncodeServiceServicer):
    """Texts and images to vectors.

    Args:
        versions: Pins the version of each request.
        pipeline: Encodes.
        drain: Says when streams must end.
        max_in_flight: Requests of one stream that may be unanswered.
    """

    def __init__(
        self, versions: Versions, pipeline: EncodePipeline, drain: Drain, max_in_flight: int
    ) -> None:
        self._versions = versions
        self._pipeline = pipeline
        self._drain = drain
        self._max_in_flight = max_in_flight

    async def Encode(  # noqa: N802 - named by the proto
        self, request: encode_pb2.EncodeRequest, context: Context
    ) -> encode_pb2.EncodeResponse:
        """Encodes one list."""
        return await self._encode(request, deadline_of(context))

    async def EncodeStream(  # noqa: N802 - named by the proto
        self,
        request_iterator: AsyncIterator[encode_pb2.EncodeStreamRequest],
        context: Context,
    ) -> AsyncIterator[encode_pb2.EncodeStreamResponse]:
        """Encodes lists of a stream, in order; each pins on its own."""
        limits = encode_pb2.StreamLimits(max_in_flight=self._max_in_flight)
        yield encode_pb2.EncodeStreamResponse(limits=limits)
        deadline = deadline_of(context)

        async def answer(request: encode_pb2.EncodeStreamRequest) -> encode_pb2.StreamAnswer:
            return await self._answer(request, deadline)

        answers = answer_in_order(
            request_iterator, answer, self._max_in_flight, self._drain.draining
        )
        async with aclosing(answers):
            async for item in answers:
                yield encode_pb2.EncodeStreamResponse(answer=item)
        if self._drain.draining.is_set():
            raise self._drain.error()

    async def Rank(  # noqa: N802 - named by the proto
        self, request: encode_pb2.RankRequest, context: Context
    ) -> encode_pb2.RankResponse:
        """Scores candidates against a query."""
        with self._versions.pin(request.model, request.version) as pin:
            scores = await rank(
                self._pipeline, pin, request.query, request.candidates, deadline_of(context)
            )
            return encode_pb2.RankResponse(
                scores=[
                    encode_pb2.RankScore(index=s.index, cosine=s.cosine, probability=s.probability)
                    for s in scores
                ],
                version=pin.resident.version_id,
                space_id=pin.resident.spec.space_id,
            )

    async def _answer(
        self, request: encode_pb2.EncodeStreamRequest, deadline: float | None
    ) -> encode_pb2.StreamAnswer:
        try:
            response = await self._encode(request.request, deadline)
        except HotclipError as error:
            return _stream_error(request.id, error)
        except Exception as error:  # noqa: BLE001
            # One request of a stream fails alone; the log has the traceback.
            return _stream_error(request.id, internal_error(STREAM_METHOD, error))
        return encode_pb2.StreamAnswer(id=request.id, response=response)

    async def _encode(
        self, request: encode_pb2.EncodeRequest, deadline: float | None
    ) -> encode_pb2.EncodeResponse:
        started = time.perf_counter()
        check_dtype(request.dtype)
        with self._versions.pin(request.model, request.version, request.expected_space_id) as pin:
            encoded = await self._pipeline.encode_items(
                request.items, pin, deadline=deadline, priority=priority_of(request.priority)
            )
            return encode_pb2.EncodeResponse(
                vectors=pack(encoded.vectors, request.dtype),
                errors=item_errors(encoded.errors),
                model=pin.resident.model,
                version=pin.resident.version_id,
                space_id=pin.resident.spec.space_id,
                timings=encode_pb2.Timings(
                    preprocess_us=encoded.preprocess_us,
                    total_us=round(1e6 * (time.perf_counter() - started)),
                ),
            )


def deadline_of(context: Context) -> float | None:
    """The caller's deadline on time.monotonic; None: none."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def priority_of(priority: types_pb2.Priority.ValueType) -> Priority:
    """Class of a request; interactive unless it says bulk."""
    return Priority.BULK if priority == types_pb2.PRIORITY_BULK else Priority.INTERACTIVE


def _stream_error(request_id: int, error: HotclipError) -> encode_pb2.StreamAnswer:
    return encode_pb2.StreamAnswer(
        id=request_id,
        error=encode_pb2.StreamError(
            code=grpc_code(error), reason=error.reason, message=error.message
        ),
    )
