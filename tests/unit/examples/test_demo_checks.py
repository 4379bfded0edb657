"""The demonstration's own checks must be able to fail."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hotclip_examples.demo.golden import Golden, separation
from hotclip_examples.demo.load import Answer, Load, Pool, longest_gap_ms, mixed_answers

POOL = Pool(texts=["a", "b", "c"], images=[b"1", b"2"], point_ids=["p0", "p1", "p2"])


def _unit(rows: int, seed: int) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).normal(size=(rows, 16))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def _golden(seed: int) -> Golden:
    return Golden(texts=_unit(3, seed), images=_unit(2, seed + 1), index=_unit(3, seed + 2))


GOLDEN = {"old": _golden(0), "new": _golden(10)}


def _encoded(version: str, of: str) -> Answer:
    truth = GOLDEN[of]
    return Answer(
        began=0.0,
        ended=1.0,
        version=version,
        texts=(2, 0),
        images=(1,),
        vectors=np.concatenate([truth.texts[[2, 0]], truth.images[[1]]]),
    )


def _searched(version: str, of: str) -> Answer:
    scores = GOLDEN[of].index @ GOLDEN[of].texts[1]
    best = np.argsort(-scores)
    hits = tuple((f"p{i}", float(scores[i])) for i in best)
    return Answer(began=0.0, ended=1.0, version=version, texts=(1,), hits=hits)


def test_answers_of_the_named_version_are_pure() -> None:
    answers = [_encoded("old", "old"), _encoded("new", "new"), _searched("old", "old")]
    assert mixed_answers(answers, POOL, GOLDEN) == []


def test_answers_of_another_version_are_mixed() -> None:
    answers = [_encoded("old", "new"), _searched("new", "old"), _encoded("gone", "old")]
    assert mixed_answers(answers, POOL, GOLDEN) == answers


def test_one_foreign_row_is_enough() -> None:
    answer = _encoded("old", "old")
    assert answer.vectors is not None
    rows = answer.vectors.copy()
    rows[1] = GOLDEN["new"].texts[0]
    assert mixed_answers([replace(answer, vectors=rows)], POOL, GOLDEN)


def test_queries_of_one_version_against_the_index_of_another_are_mixed() -> None:
    scores = GOLDEN["old"].index @ GOLDEN["new"].texts[1]
    hits = tuple((f"p{i}", float(scores[i])) for i in np.argsort(-scores))
    answer = Answer(began=0.0, ended=1.0, version="new", texts=(1,), hits=hits)
    assert mixed_answers([answer], POOL, GOLDEN) == [answer]


def test_a_search_that_misses_the_best_is_mixed() -> None:
    answer = _searched("old", "old")
    assert mixed_answers([replace(answer, hits=answer.hits[1:])], POOL, GOLDEN)


def test_versions_that_are_alike_have_no_separation() -> None:
    assert separation(GOLDEN["old"], GOLDEN["old"]) == 0
    assert separation(GOLDEN["old"], GOLDEN["new"]) > 0.1


def test_a_fault_of_the_client_is_a_failure() -> None:
    load = Load(client=object(), pool=POOL, collection="c")  # type: ignore[arg-type]  # the fault
    load.start()
    ends = time.monotonic() + 10
    while len(load.failures) < 3 and time.monotonic() < ends:
        time.sleep(0.01)
    load.stop()
    assert all("AttributeError" in failure for failure in load.failures)
    assert len(load.failures) >= 3


def test_the_longest_gap_counts_the_ends_of_the_window() -> None:
    answers = [Answer(began=0.0, ended=end, version="old") for end in (1.0, 1.5, 1.6, 9.0)]
    assert longest_gap_ms(answers, 0.0, 2.0) == pytest.approx(1000)
    assert longest_gap_ms([], 0.0, 2.0) == pytest.approx(2000)
