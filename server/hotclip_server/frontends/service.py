"""EncodeService in a front end: requests wait while a flip is under way."""

from __future__ import annotations

from typing import Any

import grpc

from hotclip_proto.v1 import encode_pb2
from hotclip_server.drain import Drain
from hotclip_server.frontends.versions import FrontVersions
from hotclip_server.pipeline import EncodePipeline
from hotclip_server.services.encode import EncodeService, Later, Witness


class FrontEncodeService(EncodeService):
    """Pins right after it was let in: in the same turn of the loop."""

    def __init__(
        self,
        versions: FrontVersions,
        pipeline: EncodePipeline,
        drain: Drain,
        max_in_flight: int,
        witness: Witness,
    ) -> None:
        super().__init__(versions, pipeline, drain, max_in_flight, witness)
        self._front = versions

    async def Rank(  # noqa: N802 - named by the proto
        self, request: encode_pb2.RankRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> encode_pb2.RankResponse:
        """Scores candidates against a query."""
        await self._front.admitted()
        return await super().Rank(request, context)

    async def _encode_into(
        self,
        response: encode_pb2.EncodeResponse,
        request: encode_pb2.EncodeRequest,
        deadline: float | None,
    ) -> Later | None:
        await self._front.admitted()
        return await super()._encode_into(response, request, deadline)
