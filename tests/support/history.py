"""What a collection may answer while it is written to: every answer is checked against every
point, by when its writes were asked for and acknowledged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.search import text_vectors

from hotclip_server.search.protocol import Match
from hotclip_server.testing import FakeEncoder

ROUNDING = 1e-5


@dataclass
class Write:
    """One write of one point; None removes it."""

    text: str | None
    began: int
    acknowledged: float = math.inf


@dataclass
class Span:
    """Something that was asked for and answered, and by which version."""

    asked: int
    answered: int
    version: str


@dataclass
class History:
    """Of one collection of texts; moments are numbers that only grow. A point has one writer."""

    writes: dict[str, list[Write]] = field(default_factory=dict)
    flips: list[Span] = field(default_factory=list)
    searches: list[Span] = field(default_factory=list)
    _clock: Iterator[int] = field(default_factory=itertools.count)
    _vectors: dict[tuple[str, str], NDArray[np.float32]] = field(default_factory=dict)

    def now(self) -> int:
        """A new moment."""
        return next(self._clock)

    @contextmanager
    def writing(self, changes: Mapping[str, str | None]) -> Iterator[None]:
        """The block returns when the changes are acknowledged."""
        begun = [Write(text, self.now()) for text in changes.values()]
        for point, write in zip(changes, begun, strict=True):
            self.writes.setdefault(point, []).append(write)
        yield
        ended = self.now()
        for write in begun:
            write.acknowledged = ended

    async def flip(self, work: Coroutine[Any, Any, object], version: str) -> None:
        """Awaits what makes `version` live."""
        asked = self.now()
        await work
        self.flips.append(Span(asked, self.now(), version))

    def final(self) -> dict[str, str]:
        """What must be stored when every write was acknowledged."""
        last = {point: writes[-1].text for point, writes in self.writes.items()}
        return {point: text for point, text in last.items() if text is not None}

    def possible(self, point: str, asked: int, answered: int) -> set[str | None]:
        """What a point may have been between two moments."""
        writes = [write for write in self.writes[point] if write.began < answered]
        done = [at for at, write in enumerate(writes) if write.acknowledged < asked]
        found = {write.text for write in writes[done[-1] if done else 0 :]}
        return found if done else {*found, None}

    def check(
        self,
        encoder: FakeEncoder,
        query: str,
        matches: Sequence[Match],
        limit: int,
        asked: int,
        answered: int,
    ) -> None:
        """The answer is the exact one of what may have been stored, by this encoder."""
        found = {match.id: match for match in matches}
        assert len(found) == len(matches) <= limit
        scores = [match.score for match in matches]
        assert scores == sorted(scores, reverse=True)
        (wanted,) = text_vectors(encoder, [query])
        for match in matches:
            text = match.payload["text"]
            assert text in self.possible(match.id, asked, answered), (match, "was not stored")
            score = float(self._vector(encoder, text) @ wanted)
            assert abs(match.score - score) <= ROUNDING, (match, score)
        # Who is not among them was less alike, or may have been away.
        least = scores[-1] if len(matches) == limit else -math.inf
        for point in self.writes.keys() - found.keys():
            texts = self.possible(point, asked, answered)
            if None not in texts:
                vectors = [self._vector(encoder, text) for text in texts if text is not None]
                score = min(float(vector @ wanted) for vector in vectors)
                assert score <= least + ROUNDING, (point, texts, score, least)

    def check_versions(self) -> None:
        """See the function."""
        check_versions(self.flips, self.searches)

    def _vector(self, encoder: FakeEncoder, text: str) -> NDArray[np.float32]:
        key = (encoder.spec.space_id, text)
        if key not in self._vectors:
            self._vectors[key] = text_vectors(encoder, [text])[0]
        return self._vectors[key]


def check_versions(flips: Sequence[Span], searches: Sequence[Span]) -> None:
    """Who asked after a flip had returned, or after somebody saw it, got the new version."""
    for number, flip in enumerate(flips):
        following = flips[number + 1 :]
        end = following[0].asked if following else math.inf
        spans = [s for s in searches if s.asked > flip.asked and s.answered < end]
        seen = min((s.answered for s in spans if s.version == flip.version), default=flip.answered)
        late = {s.version for s in spans if s.asked > min(seen, flip.answered)}
        assert late <= {flip.version}, (number, late)
