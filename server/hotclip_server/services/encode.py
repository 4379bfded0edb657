"""hotclip.v1.EncodeService."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from hotclip_proto.v1 import encode_pb2, encode_pb2_grpc, types_pb2
from hotclip_server.batching.ticket import Priority
from hotclip_server.boundary import grpc_code, internal_error
from hotclip_server.drain import Drain
from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.protocol import Truncate
from hotclip_server.encoding.spaces import truncated
from hotclip_server.errors import HotclipError, InvalidArgument
from hotclip_server.models.residents import Pin, Resident
from hotclip_server.pipeline import Encoded, EncodePipeline
from hotclip_server.ranking import rank
from hotclip_server.services.ordered import answer_in_order
from hotclip_server.services.vectors import check_dtype, item_errors, pack_into

Context = grpc.aio.ServicerContext[Any, Any]

STREAM_METHOD = "/hotclip.v1.EncodeService/EncodeStream"

_TRUNCATIONS = {
    types_pb2.TRUNCATION_UNSPECIFIED: Truncate.END,
    types_pb2.TRUNCATION_END: Truncate.END,
    types_pb2.TRUNCATION_START: Truncate.START,
    types_pb2.TRUNCATION_NONE: Truncate.NONE,
}
_PRIORITIES = {
    types_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    types_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    types_pb2.PRIORITY_BULK: Priority.BULK,
}


class Versions(Protocol):
    """Where a request gets its version; `ModelRegistry` is one."""

    def pin(
        self,
        model: str = "",
        version: str = "",
        expected_space_id: str = "",
        dimensions: int = 0,
    ) -> Pin:
        """Holds the version that answers."""


Later = Callable[[], None]
"""To be called when an answer is on its way; raises nothing."""


class Witness(Protocol):
    """Is told of answered requests; `ShadowTraffic` is one."""

    def offer(
        self,
        resident: Resident,
        items: Sequence[types_pb2.EncodeItem],
        answer: Encoded,
        truncate: Truncate,
    ) -> Later | None:
        """A request is about to be answered; returns at once, raises nothing.

        Returns:
            What takes longer, and keeps the request until it is called; None for most requests,
            of which nothing is kept.
        """


@dataclass
class _Answered:
    """An answer, and what is to be called when it is on its way."""

    message: encode_pb2.EncodeStreamResponse
    later: Later | None

    def handed_over(self) -> encode_pb2.EncodeStreamResponse:
        """For who sends it in this turn of the loop."""
        _after_this_turn(self.later)
        self.later = None  # What holds this until the next answer holds no request.
        return self.message


class EncodeService(encode_pb2_grpc.EncodeServiceServicer):
    """Texts and images to vectors.

    Args:
        versions: Pins the version of each request.
        pipeline: Encodes.
        drain: Says when streams must end.
        max_in_flight: Requests of one stream that may be unanswered.
        witness: Told of answered requests.
    """

    def __init__(
        self,
        versions: Versions,
        pipeline: EncodePipeline,
        drain: Drain,
        max_in_flight: int,
        witness: Witness | None = None,
    ) -> None:
        self._versions = versions
        self._pipeline = pipeline
        self._drain = drain
        self._max_in_flight = max_in_flight
        self._witness = witness

    async def Encode(  # noqa: N802 - named by the proto
        self, request: encode_pb2.EncodeRequest, context: Context
    ) -> encode_pb2.EncodeResponse:
        """Encodes one list."""
        response = encode_pb2.EncodeResponse()
        _after_this_turn(await self._encode_into(response, request, deadline_of(context)))
        return response

    async def EncodeStream(  # noqa: N802 - named by the proto
        self,
        request_iterator: AsyncIterator[encode_pb2.EncodeStreamRequest],
        context: Context,
    ) -> AsyncIterator[encode_pb2.EncodeStreamResponse]:
        """Encodes lists of a stream, in order; each pins on its own."""
        limits = encode_pb2.StreamLimits(max_in_flight=self._max_in_flight)
        yield encode_pb2.EncodeStreamResponse(limits=limits)
        deadline = deadline_of(context)

        async def answer(request: encode_pb2.EncodeStreamRequest) -> _Answered:
            return await self._answer(request, deadline)

        answers = answer_in_order(
            request_iterator, answer, self._max_in_flight, self._drain.draining
        )
        async with aclosing(answers):
            async for answered in answers:
                yield answered.handed_over()
        if self._drain.draining.is_set():
            raise self._drain.error()

    async def Rank(  # noqa: N802 - named by the proto
        self, request: encode_pb2.RankRequest, context: Context
    ) -> encode_pb2.RankResponse:
        """Scores candidates against a query."""
        started = time.perf_counter()
        truncate, priority = truncate_of(request.truncate), priority_of(request.priority)
        with self._versions.pin(request.model, request.version, request.expected_space_id) as pin:
            ranked = await rank(
                self._pipeline,
                pin,
                request.query,
                request.candidates,
                deadline=deadline_of(context),
                priority=priority,
                truncate=truncate,
            )
            return encode_pb2.RankResponse(
                scores=[
                    encode_pb2.RankScore(index=s.index, cosine=s.cosine, probability=s.probability)
                    for s in ranked.scores
                ],
                version=pin.resident.version_id,
                space_id=pin.resident.spec.space_id,
                text_encoder_id=pin.resident.spec.text_encoder_id,
                vision_encoder_id=pin.resident.spec.vision_encoder_id,
                timings=timings_to_proto(ranked.encoded, started),
            )

    async def _answer(
        self, request: encode_pb2.EncodeStreamRequest, deadline: float | None
    ) -> _Answered:
        message = encode_pb2.EncodeStreamResponse()
        message.answer.id = request.id
        later = None
        try:
            later = await self._encode_into(message.answer.response, request.request, deadline)
        except HotclipError as error:
            _fail(message.answer, error)
        except Exception as error:  # noqa: BLE001
            # One request of a stream fails alone; the log has the traceback.
            _fail(message.answer, internal_error(STREAM_METHOD, error))
        return _Answered(message, later)

    async def _encode_into(
        self,
        response: encode_pb2.EncodeResponse,
        request: encode_pb2.EncodeRequest,
        deadline: float | None,
    ) -> Later | None:
        """What is to be called when the answer is on its way, if anything is."""
        # Written in place: protobuf copies a message that is put into another one.
        started = time.perf_counter()
        dtype = check_dtype(request.dtype)
        truncate, priority = truncate_of(request.truncate), priority_of(request.priority)
        with self._versions.pin(
            request.model, request.version, request.expected_space_id, request.dimensions
        ) as pin:
            resident = pin.resident
            spec = truncated(resident.spec, request.dimensions)
            encoded = await self._pipeline.encode_items(
                request.items,
                pin,
                deadline=deadline,
                priority=priority,
                truncate=truncate,
                normalize=not request.raw_features,
            )
        rows = encoded.vectors
        if spec.dim < rows.shape[1]:
            rows = rows[:, : spec.dim]
            rows = rows if request.raw_features else unit_rows(rows)
        pack_into(response.vectors, rows, dtype)
        response.errors.extend(item_errors(encoded.errors))
        response.model, response.version = resident.model, resident.version_id
        response.space_id = spec.space_id
        response.text_encoder_id = spec.text_encoder_id
        response.vision_encoder_id = spec.vision_encoder_id
        response.timings.CopyFrom(timings_to_proto([encoded], started))
        if self._witness is None:
            return None
        return self._witness.offer(resident, request.items, encoded, truncate)


def _after_this_turn(later: Later | None) -> None:
    """Has it called in the next turn of the loop: gRPC sends an answer in the turn in which it
    gets it."""
    if later is not None:
        asyncio.get_running_loop().call_soon(later)


def deadline_of(context: Context) -> float | None:
    """The caller's deadline on time.monotonic; None: none."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def priority_of(priority: types_pb2.Priority.ValueType) -> Priority:
    """Class of a request; interactive unless it says bulk.

    Raises:
        InvalidArgument: no such class.
    """
    if priority not in _PRIORITIES:
        raise InvalidArgument.field("priority", f"unknown class {priority}")
    return _PRIORITIES[priority]


def truncate_of(truncate: types_pb2.Truncation.ValueType) -> Truncate:
    """What becomes of long texts; their end is cut unless the request says otherwise.

    Raises:
        InvalidArgument: no such mode.
    """
    if truncate not in _TRUNCATIONS:
        raise InvalidArgument.field("truncate", f"unknown mode {truncate}")
    return _TRUNCATIONS[truncate]


def timings_to_proto(parts: Sequence[Encoded], started: float) -> encode_pb2.Timings:
    """Of the parts of a request that began at `started` on time.perf_counter."""
    return encode_pb2.Timings(
        preprocess_us=sum(part.preprocess_us for part in parts),
        total_us=round(1e6 * (time.perf_counter() - started)),
        queue_us=max(part.queue_us for part in parts),
        compute_us=sum(part.compute_us for part in parts),
    )


def _fail(answer: encode_pb2.StreamAnswer, error: HotclipError) -> None:
    answer.error.code = grpc_code(error)  # takes the place of the response
    answer.error.reason, answer.error.message = error.reason, error.message
