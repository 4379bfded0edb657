"""The job that compares two versions before one goes live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from hotclip_proto.v1 import drift_pb2
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.drift import records
from hotclip_server.drift.compare import Comparison, figures_of
from hotclip_server.drift.spec import DriftSpec
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.waiting import LoopWait
from hotclip_server.search.collections import Collections
from hotclip_server.search.encoding import Versions
from hotclip_server.search.protocol import VectorStore
from hotclip_server.storage.database import Database

HeldOut = Callable[[JobContext, str, str, int], Mapping[str, float]]
"""Retrieval metrics of a version on a dataset: (job, version, dataset id, k); blocks."""


class Datasets(Protocol):
    """Stored datasets; `DatasetStore` is one."""

    def load(self, dataset_id: str) -> StoredDataset:
        """Opens one for reading; blocks."""


class DriftHandler:
    """The handler of DRIFT jobs; `run` is for the job thread.

    Args:
        held_out: Measures on a dataset; None: this server has nothing that can.
    """

    kind = JobKind.DRIFT

    def __init__(
        self,
        database: Database,
        wait: LoopWait,
        versions: Versions,
        collections: Collections,
        store: VectorStore,
        datasets: Datasets,
        held_out: HeldOut | None,
    ) -> None:
        self._database = database
        self._wait = wait
        self._versions = versions
        self._collections = collections
        self._store = store
        self._datasets = datasets
        self._held_out = held_out

    def run(self, job: JobContext) -> JobResult:
        """Compares; see `JobHandler.run`."""
        spec = DriftSpec.from_json(job.spec)
        with self._resident(job, spec.version), self._resident(job, spec.base_version):
            job.running()
            report = self._compare(job, spec)
        self._measure(job, spec, report)
        report.create_time.GetCurrentTime()
        with self._database.transaction() as connection:
            records.put_report(connection, report)
        return JobResult(message=f"compared version {spec.version} with {spec.base_version}")

    def _compare(self, job: JobContext, spec: DriftSpec) -> drift_pb2.DriftReport:
        comparison = Comparison(
            job, spec, self._database, self._collections, self._store, self._wait
        )
        if not spec.dataset:
            return comparison.run(None)
        dataset = self._datasets.load(spec.dataset)
        try:
            dataset.locate(job.give_way)
            return comparison.run(dataset)
        finally:
            dataset.close()

    def _measure(self, job: JobContext, spec: DriftSpec, report: drift_pb2.DriftReport) -> None:
        """Adds what held-out data says, and tells every figure to the log."""
        before: Mapping[str, float] = {}
        after: Mapping[str, float] = {}
        if spec.dataset and self._held_out is not None:
            before = self._held_out(job, spec.base_version, spec.dataset, spec.k)
            job.metric("BEFORE", before, step=0, progress=0.9)
            after = self._held_out(job, spec.version, spec.dataset, spec.k)
        for name in sorted(before.keys() & after.keys()):
            report.metrics.add(name=name, before=before[name], after=after[name])
        job.metric("AFTER", {**after, **figures_of(report)}, step=0, progress=1.0)

    @contextmanager
    def _resident(self, job: JobContext, version: str) -> Iterator[None]:
        """Keeps a version in memory, loading it if need be."""
        holder = f"drift:{job.id}"
        self._wait(self._versions.bind(version, holder))
        try:
            yield
        finally:
            self._wait(self._release(version, holder))

    async def _release(self, version: str, holder: str) -> None:
        self._versions.release(version, holder)
