"""A fine-tune that leaves clip-vision alone: stored pictures stay valid, and their collection
goes along with the new version as it is. A real server, the built-in model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.drawings import drawn_pairs
from support.server import ServerProcess

from hotclip import Client
from hotclip.errors import SpaceMismatch

CAPTIONS = [text for _, text in drawn_pairs()]
IMAGES = [image for image, _ in drawn_pairs()]
QUERY = "a picture of a red cross"


def shards(server: ServerProcess) -> set[Path]:
    return {folder for folder in (server.data_dir / "vectors").iterdir() if folder.is_dir()}


def check(client: Client, collection: str, version: str, pictures: np.ndarray) -> None:
    """A text finds pictures as the clip-text of this version and the stored pictures say."""
    hits = client.search(collection, QUERY, limit=len(IMAGES), exact=True)
    text = client.encode(QUERY, version=version)
    assert (hits.version, hits.space_id) == (version, text.space_id)
    expected = dict(zip(CAPTIONS, (pictures @ np.asarray(text)).tolist(), strict=True))
    assert {hit.id: hit.score for hit in hits} == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_pictures_stay_valid_through_a_fine_tune_of_the_texts(
    make_server: Callable[..., ServerProcess],
) -> None:
    server = make_server()
    with Client(server.address) as client:
        old = client.get_version(client.get_model().live_version)
        for name, keep in (("pictures", False), ("both", True)):
            client.create_collection(name, keep_sources=keep)
            client.upsert(name, zip(CAPTIONS, IMAGES, strict=True))
        client.upsert("both", [("a text", "a text")])
        vectors = client.encode(IMAGES)
        assert vectors.vision_encoder_id == vectors[3].vision_encoder_id == old.vision_encoder_id
        assert vectors.text_encoder_id == old.text_encoder_id
        pictures, before = np.asarray(vectors), shards(server)
        run = client.finetune(
            list(zip(CAPTIONS, IMAGES, strict=True)),
            lock_image=True,
            method="full",
            max_steps=12,
            batch_size=8,
            learning_rate=1e-2,
            val_split=0.25,
            activation="never",
            wise_ft=None,
        )
        new = client.get_version(run.wait(120).result_version)
        assert new.vision_encoder_id == old.vision_encoder_id
        assert new.text_encoder_id != old.text_encoder_id
        assert new.space_id != old.space_id
        check(client, "pictures", old.id, pictures)

        client.activate(new.id, collections=["pictures"])
        again = client.encode(IMAGES)
        assert again.vision_encoder_id == vectors.vision_encoder_id
        assert again.text_encoder_id == new.text_encoder_id
        np.testing.assert_allclose(np.asarray(again), pictures, atol=1e-4)
        check(client, "pictures", new.id, pictures)
        found = client.get_collection("pictures")
        assert (found.version, found.space_id) == (new.id, new.space_id)
        assert (found.has_texts, found.has_images, found.has_vectors) == (False, True, False)
        # The other holds a text too: its queries are still those of the old version.
        assert client.search("both", QUERY).version == old.id
        client.rollback()
        check(client, "pictures", old.id, pictures)
        client.rollback()
        check(client, "pictures", new.id, pictures)
        assert shards(server) == before

        # Who still has vectors of the old space is answered by the old version while it is there.
        assert client.search("pictures", vectors[3], limit=1)[0].id == CAPTIONS[3]
        by_old = client.search("pictures", QUERY, expected_space_id=old.space_id)
        assert (by_old.version, by_old.space_id) == (old.id, old.space_id)
        client.reindex("both", new.id).wait(60)
        assert client.get_collection("both").version == new.id
        client.unload_version(old.id, release_rollback=True)
        with pytest.raises(SpaceMismatch):
            client.search("pictures", vectors[3])
        with pytest.raises(SpaceMismatch):
            client.search("pictures", QUERY, expected_space_id=old.space_id)
        check(client, "pictures", new.id, pictures)
