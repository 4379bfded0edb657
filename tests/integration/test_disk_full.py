"""A server whose disk is full says so."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from hotclip_proto.v1 import search_pb2, search_pb2_grpc, types_pb2
from hotclip_server.config import ServerConfig
from hotclip_server.testing import running_server


async def test_a_full_disk_of_the_database_says_so(tmp_path: Path) -> None:
    config = ServerConfig(port=0, device="cpu", model="fake:a", data_dir=tmp_path)
    point = search_pb2.Point(id="p", item=types_pb2.EncodeItem(text="x"))
    point.payload.update({"long": "x" * 20_000})
    async with (
        running_server(config) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        stub = search_pb2_grpc.SearchServiceStub(channel)
        await stub.CreateCollection(search_pb2.CreateCollectionRequest(name="c"))
        database = running.app.parts.database
        pages = await database.run(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())

        def bound(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

        assert database._engine is not None
        sa.event.listen(database._engine, "begin", bound)
        with pytest.raises(grpc.aio.AioRpcError) as full:
            await stub.Upsert(search_pb2.UpsertRequest(collection="c", points=[point]))
        assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = rpc_status.from_call(full.value)  # type: ignore[arg-type]  # reads what both have
        assert status is not None
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "DISK_FULL"
