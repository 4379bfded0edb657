"""Searches with a filter that few points match, yet too many to compare each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hotclip_server.search import generations
from hotclip_server.search.shard import Shard

from .vectors import clustered

POINTS, DIM, ONE_IN = 12_000, 64, 16


async def test_what_few_match_is_found_by_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 400 vectors: more match, so that the graph is asked.
    monkeypatch.setattr(generations, "INDEXING_THRESHOLD_KB", 100)
    vectors, queries = clustered(POINTS, DIM), clustered(100, DIM, seed=1)
    shard = Shard.create(tmp_path / "s", DIM)
    rows = [{"i": f"{at}", "r": 1, "p": {"of": at % ONE_IN}} for at in range(POINTS)]
    await shard.upsert(rows, vectors)
    await shard.optimize()
    assert shard.info()["indexed"] == POINTS
    is_one = {"key": "of", "values": [1], "gt": None, "gte": None, "lt": None, "lte": None}
    told = {
        "limit": 10,
        "exact": False,
        "filter": {"must": [is_one]},
        "exclude": [[]] * len(queries),
        "score_threshold": None,
    }
    right = np.argsort(-(queries @ vectors[1::ONE_IN].T), axis=1)[:, :10] * ONE_IN + 1
    for indexed in ("no", "yes"):
        hits = json.loads(await shard.search(queries, told))
        found = [
            len({i for i, *_ in one} & {str(at) for at in row})
            for one, row in zip(hits, right, strict=True)
        ]
        assert np.mean(found) / 10 >= 0.95, f"payload field indexed: {indexed}"
        await shard.optimize()  # Now of the field too.
    await shard.close()
