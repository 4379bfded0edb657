"""Evaluation as a job of its own: any version, any dataset, both directions."""

from __future__ import annotations

import numpy as np
import pytest
from support.drawings import drawn_pairs
from support.server import ServerProcess

from hotclip import AsyncClient, Client, Pair
from hotclip.errors import InvalidArgument
from hotclip_server.training.metrics import Compat, retrieval_metrics

TEXT, IMAGE = "clip-text", "clip-vision"
COMPATS: tuple[Compat, ...] = ("standard", "finetuner", "clip_benchmark")


async def test_metrics_are_those_of_the_vectors_that_the_version_gives(
    server: ServerProcess,
) -> None:
    drawn = [(text, image) for image, text in drawn_pairs()]
    queries = [Pair(text, image, score=1 - place / 16) for place, (text, image) in enumerate(drawn)]
    queries = queries[:8]
    # The fourth text also fits the fifth image a little, and the sixth not at all.
    queries += [Pair(drawn[3][0], drawn[4][1], score=0.5), Pair(drawn[3][0], drawn[5][1], score=0)]
    texts, images = [text for text, _ in drawn], [image for _, image in drawn]
    gains = np.diag([1 - place / 16 if place < 8 else 1 for place in range(len(drawn))])
    gains[3, 4] = 0.5
    with Client(server.address) as client:
        tuned = client.finetune(
            drawn, val_split=0, max_steps=2, batch_size=8, learning_rate=1e-3, activation="never"
        )
        version = tuned.wait(60).result_version
        assert version != client.get_model().live_version
        vectors = [np.asarray(client.encode(part, version=version)) for part in (texts, images)]
        scores = vectors[0].astype(np.float64) @ vectors[1].astype(np.float64).T
        for compat in COMPATS:
            run = client.evaluate(queries, version=version, index_data=drawn, k=5, compat=compat)
            measured = run.wait(60).metrics
            assert run.metrics() == measured
            for names, rows in (
                (f"{TEXT}-to-{IMAGE}", zip(scores[:8], gains[:8], strict=True)),
                (f"{IMAGE}-to-{TEXT}", zip(scores.T[:8], gains.T[:8], strict=True)),
            ):
                for name, value in retrieval_metrics(rows, 5, compat).items():
                    assert measured[f"{names}_{name}"] == pytest.approx(value, rel=1e-5), name
        with pytest.raises(InvalidArgument, match="compat"):
            client.evaluate("any", compat="trec")  # type: ignore[arg-type]  # on purpose
        async with AsyncClient(server.address) as twin:
            again = await twin.evaluate(
                queries, version=version, index_data=drawn, k=5, compat="clip_benchmark"
            )
            assert (await again.wait(60)).metrics == measured
            assert await again.metrics() == measured
            assert await again.examples() == run.examples()
            assert {example.query for example in run.examples()} <= set(texts)
        client.delete_version(version)
