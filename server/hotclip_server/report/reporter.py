"""Gathers what the page of a job needs: its log, its datasets, the pictures in its examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from hotclip_server.datasets.records import DatasetRecord
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.drift.records import find_report
from hotclip_server.errors import DataLoss, NotFound
from hotclip_server.jobs import store
from hotclip_server.jobs.records import JobRecord
from hotclip_server.report.pictures import data_uri, thumbnail
from hotclip_server.report.run_log import RunLog
from hotclip_server.report.run_report import ROLES, build_report
from hotclip_server.storage.database import Database, now

PAGE = 256
"""Events read in one transaction: the job goes on writing in between."""


class Reporter:
    """Writes a page whenever it is asked for, also while the job runs.

    Nothing is stored, so a page shows what the server has now: pictures of a dataset that was
    deleted are missing, and the page says so.
    """

    def __init__(self, database: Database, datasets: DatasetStore) -> None:
        self._database = database
        self._datasets = datasets

    async def html(self, job: str) -> str:
        """The page of a job by id or name. Raises NotFound."""
        record = await self._database.run(lambda connection: store.get(connection, job))
        known: dict[str, DatasetRecord] = {}
        for dataset in {str(record.spec[field]) for field in ROLES if record.spec.get(field)}:
            with suppress(NotFound):  # the page says that it is gone
                known[dataset] = await self._datasets.get(dataset)
        return await self._datasets.run(self._render, record, known)

    def _render(self, job: JobRecord, known: dict[str, DatasetRecord]) -> str:
        # Templates are imported with the first page.
        from hotclip_server.report.page import render

        log = self._read(job)
        with self._database.transaction() as connection:
            drift = find_report(connection, job.id)
        with self._pictures(known) as picture:
            return render(build_report(job, log, known, picture, now(), drift))

    def _read(self, job: JobRecord) -> RunLog:
        log, seq = RunLog(), 0
        while seq < job.last_seq:
            with self._database.transaction() as connection:
                events = store.events_after(connection, job.id, seq, limit=PAGE)
            if not events:
                break  # deleted meanwhile
            for event in events:
                log.add(event)
            seq = events[-1].seq
        return log

    @contextmanager
    def _pictures(self, known: Iterable[str]) -> Iterator[Callable[[str], str]]:
        """What finds pictures in these datasets."""
        with ExitStack() as stack:
            opened: list[StoredDataset] = []
            for dataset in known:
                with suppress(NotFound, DataLoss):  # the page shows what is left
                    stored = self._datasets.load(dataset)
                    stack.callback(stored.close)
                    opened.append(stored)
            found: dict[str, str] = {}

            def picture(key: str) -> str:
                if key not in found:
                    found[key] = _picture(key, opened)
                return found[key]

            yield picture


def _picture(key: str, datasets: list[StoredDataset]) -> str:
    for dataset in datasets:
        try:
            return data_uri(thumbnail(dataset.image_bytes(key)))
        except KeyError:
            continue
        except (DataLoss, OSError, ValueError, SyntaxError):
            return ""  # damaged on the disk: a page without it says more than no page
    return ""
