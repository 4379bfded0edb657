"""What a change of version changes; methods of AsyncClient."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hotclip import _drift as parse
from hotclip import _jobs
from hotclip._aio.datasets import dataset_for
from hotclip._aio.jobs import AsyncRun
from hotclip._dataset_file import PairSource
from hotclip._drift import DriftReport
from hotclip._message import made
from hotclip_proto.v1 import drift_pb2

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient


async def compare_versions(
    self: AsyncClient,
    version: str,
    *,
    base_version: str = "",
    model: str = "",
    collections: Sequence[str] = (),
    data: str | PairSource | None = None,
    texts: Sequence[str] = (),
    sample: int | None = None,
    k: int | None = None,
    seed: int = 0,
    name: str = "",
    description: str = "",
    request_id: str = "",
    timeout: float | None = None,
) -> AsyncRun:
    """Starts measuring what would change if a version went live; see drift_report.

    Args:
        version: The version that might go live.
        base_version: The version that it is compared with; empty: the live one.
        model: Name of the model; empty: "default".
        collections: Collections to look at; none: all of the model.
        data: Held-out data: a str is a dataset's name or id, anything else is uploaded as for
            finetune; None: no retrieval metrics.
        texts: Further texts, such as queries.
        sample: Points of each collection, pairs and recorded queries to look at, 16 to 10,000;
            None: 1,000.
        k: Neighbours that are compared, and length of the lists of metrics, 1 to 100; None: 10.
        seed: Which sample is drawn.
        name: Of the job, unique; empty: the id.
        description: Free text.
        request_id: The same id again within a day gives the same job; empty: a new one is made.
        timeout: Seconds for starting; None: the client's default.

    Raises:
        NotFound: No such version, collection or dataset.
        FailedPrecondition: There is nothing to compare with (reason NOTHING_TO_COMPARE).
    """
    request = made(
        drift_pb2.CompareVersionsRequest,
        model=model,
        version=version,
        base_version=base_version,
        collections=collections,
        texts=texts,
        sample=sample,
        k=k,
        seed=seed,
        name=name,
        description=description,
        request_id=request_id or uuid.uuid4().hex,
    )
    if data is not None:
        request.dataset = await dataset_for(self, data)
    connection = self._connection
    stub = connection.stubs().drift
    started = await connection.call(stub.CompareVersions, request, connection.deadline(timeout))
    return AsyncRun(connection, _jobs.job(started))


async def drift_report(self: AsyncClient, job: str, *, timeout: float | None = None) -> DriftReport:
    """What a job of compare_versions has found.

    Args:
        job: Its id or name.
        timeout: Seconds; None: the client's default.

    Raises:
        NotFound: No such job.
        FailedPrecondition: It has not ended well, or is of another kind.
    """
    connection = self._connection
    request = made(drift_pb2.GetDriftReportRequest, job=job)
    stub = connection.stubs().drift
    reply = await connection.call(stub.GetDriftReport, request, connection.deadline(timeout))
    return parse.drift_report(reply)
