"""Background traffic that never stops, and the check of every answer it got.

Each worker sends one request after another and keeps what came back. Nothing is checked while
it runs, so that the check does not take time from the server on a small machine.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import hotclip
from hotclip_examples.demo.golden import Golden

PAUSE_S = 0.1
"""Between two requests of a worker: steady traffic, with room for training on two cores."""
SEARCH_LIMIT = 10
SCORE_TOLERANCE = 1e-3
"""A score is a sum over `dim` products in float32, here and in the index."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What the workers ask for, and the ids of the indexed points in the order of the golden."""

    texts: Sequence[str]
    images: Sequence[bytes]
    point_ids: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One finished request; times are of `time.monotonic`, in seconds."""

    began: float
    ended: float
    version: str
    texts: tuple[int, ...] = ()
    images: tuple[int, ...] = ()
    vectors: NDArray[np.float32] | None = None
    """Encode: rows for `texts`, then for `images`."""
    hits: tuple[tuple[str, float], ...] = ()
    """Search: ids and scores for the one text."""


@dataclass
class Load:
    """Two encoding workers and one searching worker against one server."""

    client: hotclip.Client
    pool: Pool
    collection: str
    pause_s: float = PAUSE_S
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._workers = [
            threading.Thread(target=self._work, args=(seed, ask), daemon=True)
            for seed, ask in enumerate((self._encode, self._encode, self._search))
        ]

    def start(self) -> None:
        """Starts the workers."""
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        """Lets the requests under way end, then the workers."""
        self._stop.set()
        for worker in self._workers:
            worker.join()

    def _work(self, seed: int, ask: _Ask) -> None:
        generator = random.Random(seed)
        while not self._stop.wait(self.pause_s):
            try:
                answer = ask(generator)
            except Exception as error:  # noqa: BLE001 - a fault of the client counts as well
                with self._lock:
                    self.failures.append(f"{type(error).__name__}: {error}")
            else:
                with self._lock:
                    self.answers.append(answer)

    def _encode(self, generator: random.Random) -> Answer:
        texts = tuple(generator.sample(range(len(self.pool.texts)), generator.randint(0, 3)))
        images = tuple(generator.sample(range(len(self.pool.images)), generator.randint(1, 2)))
        items: list[str | bytes] = [self.pool.texts[i] for i in texts]
        items += [self.pool.images[i] for i in images]
        began = time.monotonic()
        vectors = self.client.encode(items)
        return Answer(
            began=began,
            ended=time.monotonic(),
            version=vectors.version,
            texts=texts,
            images=images,
            vectors=np.asarray(vectors),
        )

    def _search(self, generator: random.Random) -> Answer:
        text = generator.randrange(len(self.pool.texts))
        began = time.monotonic()
        found = self.client.search(self.collection, self.pool.texts[text], limit=SEARCH_LIMIT)
        return Answer(
            began=began,
            ended=time.monotonic(),
            version=found.version,
            texts=(text,),
            hits=tuple((hit.id, hit.score) for hit in found),
        )


class _Ask(Protocol):
    """A request of a worker; a protocol for typing alone."""

    def __call__(self, generator: random.Random) -> Answer: ...


def mixed_answers(
    answers: Sequence[Answer], pool: Pool, golden: Mapping[str, Golden]
) -> list[Answer]:
    """Answers that are not what the version that they name makes of their input.

    A search must score its hits as that version does, and find that version's own best.
    """
    rows = {point_id: row for row, point_id in enumerate(pool.point_ids)}
    return [answer for answer in answers if not _is_pure(answer, rows, golden)]


def _is_pure(answer: Answer, rows: Mapping[str, int], golden: Mapping[str, Golden]) -> bool:
    if answer.version not in golden:
        return False
    truth = golden[answer.version]
    if answer.vectors is not None:
        expected = np.concatenate(
            [truth.texts[list(answer.texts)], truth.images[list(answer.images)]]
        )
        return truth.agrees(answer.vectors, expected)
    scores = truth.index @ truth.texts[answer.texts[0]]
    found = np.array([scores[rows[point_id]] for point_id, _ in answer.hits])
    told = np.array([score for _, score in answer.hits])
    best = float(scores.max())
    return (
        len(answer.hits) == min(SEARCH_LIMIT, len(rows))
        and bool(np.abs(found - told).max() <= SCORE_TOLERANCE)
        and told[0] >= best - SCORE_TOLERANCE
    )


def longest_gap_ms(answers: Sequence[Answer], start: float, end: float) -> float:
    """Longest time without any completion between two moments, in milliseconds."""
    ends = sorted(answer.ended for answer in answers if start <= answer.ended <= end)
    moments = [start, *ends, end]
    return max(later - earlier for earlier, later in itertools.pairwise(moments)) * 1e3


def versions_seen(answers: Sequence[Answer]) -> dict[str, int]:
    """Number of answers by version."""
    return dict(Counter(answer.version for answer in answers))
