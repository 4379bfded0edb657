"""A job that reads its rows gives way to serving, and ends when it is asked to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hotclip_server.jobs.context import Cancelled, JobContext, Level
from hotclip_server.jobs.specs import ActivationRule, EvaluateSpec, FineTuneSpec
from hotclip_server.storage.database import Database
from hotclip_server.training.child import DatasetFolders
from hotclip_server.training.evaluate_job import EvaluateHandler
from hotclip_server.training.finetune_work import Workplace, local_work
from hotclip_server.training.lazy_pairs import PIECE, Paused
from hotclip_server.training.pairs import Pair
from tests.unit.training.test_finetune_job import CONFIG, Shelf
from tests.unit.training.tiny import stored_pairs, tiny_clip

ROWS = 40 * PIECE


class Watched(JobContext):
    """A job that counts how often it asks whether to go on, and is cancelled at one of these."""

    def __init__(self, database: Database, at: int = 0) -> None:
        self.asked = self.gave_way = 0
        self._at = at
        self._cancelled = threading.Event()
        super().__init__(
            database,
            "job",
            {},
            cancel=self._cancelled,
            stop=threading.Event(),
            changed=lambda job: None,
            pressure_s=lambda: 0.0,
        )

    def check_cancelled(self) -> None:
        self.asked += 1
        if self.asked == self._at:
            self._cancelled.set()
        super().check_cancelled()

    def yield_to_serving(self) -> None:
        self.gave_way += 1
        super().yield_to_serving()

    def log(self, message: str, level: Level = "INFO") -> None:
        """No row of this job is there to write to."""

    def running(self, message: str = "") -> None:
        """Likewise."""


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    stored_pairs(tmp_path / "ds-new", ROWS).close()
    stored_pairs(tmp_path / "ds-old", ROWS).close()
    shelf, folders = Shelf({"base": tiny_clip()}), tmp_path / "states"
    return Workplace(versions=shelf, datasets=DatasetFolders(tmp_path), folders=folders)


SPEC = FineTuneSpec(
    model="default",
    base_version="base",
    train_dataset="ds-new",
    eval_dataset="",
    index_dataset="",
    replay_dataset="ds-old",
    val_split=0.1,
    activation=ActivationRule.NEVER,
    config=CONFIG,
)
MEASURED = EvaluateSpec(
    model="default", version="base", dataset="ds-new", index_dataset="ds-old", k=5
)


def divided(place: Workplace, job: JobContext) -> None:
    with local_work(place, job, SPEC):
        pass


def measured(place: Workplace, job: JobContext) -> None:
    job.spec = MEASURED.to_json()
    with suppress(KeyError):  # nobody has the images
        EvaluateHandler(place.versions, place.datasets).run(job)


@pytest.mark.parametrize("work", [divided, measured])
def test_it_ends_at_any_piece_and_gives_way_before_each(
    database: Database, place: Workplace, work: Callable[[Workplace, JobContext], None]
) -> None:
    whole = Watched(database)
    work(place, whole)
    # Of both sets: where rows lie, where images lie, and what the rows are.
    assert whole.asked >= whole.gave_way >= 6 * ROWS // PIECE
    for at in (1, whole.asked // 3, whole.asked // 2, whole.gave_way - 1):
        job = Watched(database, at)
        before = open_files()
        with pytest.raises(Cancelled):
            work(place, job)
        assert job.asked == at
        assert open_files() == before


def open_files() -> int:
    return psutil.Process().num_fds()


def test_threads_that_read_ahead_do_not_pause() -> None:
    pauses: list[int] = []

    def pause() -> None:
        pauses.append(threading.get_ident())

    pairs = Paused([Pair("image", "text")] * 2 * PIECE, pause)
    for thread in [threading.Thread(target=list, args=[pairs]) for _ in range(2)]:
        thread.start()
        thread.join()
    assert pauses == []
    assert len(list(pairs)) == 2 * PIECE
    assert pauses == [threading.get_ident()] * 2
