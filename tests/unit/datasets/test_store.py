from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from support.drawings import draw, drawn_pairs, key_of

from hotclip_server.datasets.records import DatasetLimits, DatasetRecord
from hotclip_server.datasets.rows import Row
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.datasets.upload import IMAGES, PAIRS, DatasetUpload
from hotclip_server.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database

PICTURE = draw("red", "circle")


async def put(store: DatasetStore, name: str, pairs: list[tuple[bytes, str]]) -> DatasetRecord:
    upload = await store.begin()
    try:
        for image, text in pairs:
            upload.add_pairs([Row(key_of(image), text)])  # before its image: any order
            upload.add_image(key_of(image), image)
        return await store.commit(upload, name, "shapes")
    finally:
        upload.discard()


def violations(upload: DatasetUpload) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as refused:
        upload.finish()
    upload.discard()
    return {violation.field: violation.reason for violation in refused.value.violations}


async def test_what_is_stored_is_what_was_uploaded(store: DatasetStore, tmp_path: Path) -> None:
    pairs = drawn_pairs()
    record = await put(store, "shapes", [*pairs, *pairs[:3]])
    assert (record.counts.pairs, record.counts.images, record.counts.texts) == (32, 32, 32)
    assert (record.counts.groups, record.counts.duplicate_pairs) == (0, 3)
    stored = store.load(record.id)
    assert {(pair.image_key, pair.text, pair.group) for pair in stored.pairs} == {
        (key_of(image), text, None) for image, text in pairs
    }
    assert {stored.image_bytes(key) for key in stored.image_keys} == {i for i, _ in pairs}
    stored.close()
    assert await store.get("shapes") == await store.get(record.id) == record
    assert [entry.name for entry in (tmp_path / "datasets").iterdir()] == [record.id]
    folder = tmp_path / "datasets" / record.id
    size = sum((folder / name).stat().st_size for name in ("images.bin", "pairs.jsonl"))
    assert record.counts.size_bytes == size


async def test_same_content_is_the_same_dataset_in_any_order(store: DatasetStore) -> None:
    pairs = drawn_pairs()
    first = await put(store, "shapes", pairs)
    random.Random(1).shuffle(pairs)
    assert await put(store, "shapes", pairs) == first
    assert await put(store, "", pairs) == first
    with pytest.raises(AlreadyExists) as other_name:
        await put(store, "again", pairs)
    assert other_name.value.metadata == {"dataset": first.id, "name": "shapes"}
    with pytest.raises(AlreadyExists):
        await put(store, "shapes", pairs[1:])
    with pytest.raises(AlreadyExists):
        await put(store, first.id, pairs[1:])
    unnamed = await put(store, "", pairs[1:])
    assert unnamed.name == unnamed.id
    assert [record.id for record in await store.list(limit=9)] == [unnamed.id, first.id]
    before = (unnamed.create_time, unnamed.id)
    assert [record.id for record in await store.list(limit=9, before=before)] == [first.id]


async def test_every_bad_row_is_named(store: DatasetStore) -> None:
    upload = await store.begin()
    key = key_of(PICTURE)
    upload.add_image(key, PICTURE)
    broken = PICTURE[: len(PICTURE) // 2]
    upload.add_image(key_of(broken), broken)
    upload.add_image(key_of(b"hello"), b"hello")
    upload.add_image("KEY", PICTURE)
    upload.add_pairs([Row(key, "good"), Row(key, "  "), Row(key, "x" * 9000)])
    upload.add_pairs([Row("nothing", "text"), Row("0" * 64, "text"), Row(key_of(broken), "b")])
    found = violations(upload)
    assert list(found) == [
        *("images[1].data", "images[2].data", "images[3].key"),
        *("pairs[1].text", "pairs[2].text", "pairs[3].image_key", "pairs[4].image_key"),
    ]
    assert "cannot be decoded" in found["images[1].data"]
    assert "not a JPEG, PNG or WebP" in found["images[2].data"]
    assert "9000 bytes" in found["pairs[2].text"]


async def test_labels_scores_and_negatives(store: DatasetStore) -> None:
    images = [image for image, _ in drawn_pairs()[:3]]
    keys = [key_of(image) for image in images]
    upload = await store.begin()
    for image in images:
        upload.add_image(key_of(image), image)
    rows = [
        Row(keys[0], "", label="square"),
        Row(keys[1], "red circle", "g", "circle", 0.5, ("blue circle",), (keys[2],)),
    ]
    upload.add_pairs(rows)
    record = await store.commit(upload, "labelled", "")
    counts = record.counts
    assert (counts.pairs, counts.images, counts.texts, counts.labels) == (2, 3, 1, 2)
    assert (counts.uncaptioned_pairs, counts.pairs_with_negatives) == (1, 1)
    stored = store.load(record.id)
    assert {(p.label, p.score, p.negative_texts, p.negative_images) for p in stored.pairs} == {
        ("square", 1.0, (), ()),
        ("circle", 0.5, ("blue circle",), (keys[2],)),
    }
    stored.close()


async def test_bad_labels_scores_and_negatives_are_named(store: DatasetStore) -> None:
    key = key_of(PICTURE)
    upload = await store.begin()
    upload.add_image(key, PICTURE)
    upload.add_pairs(
        [
            Row(key, "", label=" "),
            Row(key, " ", label="a"),
            Row(key, "a", label="x" * 2000),
            Row(key, "a", score=1.5),
            Row(key, "a", score=float("nan")),
            Row(key, "a", negative_texts=("", "a", "b" * 9000)),
            Row(key, "a", negative_images=(key, "x", "0" * 64)),
            Row(key, "a", negative_texts=("b",) * 65),
            Row(key, "a", negative_images=("0" * 64,)),
        ]
    )
    assert list(violations(upload)) == [
        *("pairs[0].text", "pairs[1].text", "pairs[2].label", "pairs[3].score", "pairs[4].score"),
        *(f"pairs[5].negative_texts[{i}]" for i in (2, 0, 1)),
        *(f"pairs[6].negative_image_keys[{i}]" for i in (0, 1)),
        *("pairs[7].negative_texts", "pairs[8].image_key"),
    ]


async def test_empty_and_unused(store: DatasetStore) -> None:
    assert violations(await store.begin()) == {"pairs": "the dataset has none"}
    upload = await store.begin()
    other = draw("blue", "cross", file_format="JPEG")
    upload.add_image(key_of(PICTURE), PICTURE)
    upload.add_image(key_of(other), other)
    upload.add_pairs([Row(key_of(PICTURE), "red circle")])
    assert list(violations(upload)) == ["images[1].key"]


async def test_a_hopeless_upload_ends_early(store: DatasetStore, tmp_path: Path) -> None:
    upload = await store.begin()
    with pytest.raises(InvalidArgument) as refused:
        upload.add_pairs([Row("0" * 64, "")] * 1000)
    assert len(refused.value.violations) == DatasetLimits().max_violations
    upload.discard()
    assert list((tmp_path / "datasets").iterdir()) == []


async def test_limits_and_checksum(tmp_path: Path, store: DatasetStore) -> None:
    root = tmp_path / "datasets"
    for limits, reason in (
        (DatasetLimits(max_bytes=len(PICTURE) // 2), "DATASET_TOO_LARGE"),
        (DatasetLimits(min_free_disk_bytes=1 << 60), "DISK_FULL"),
    ):
        upload = DatasetUpload(root, limits)
        with pytest.raises(ResourceExhausted) as refused:
            upload.add_image(key_of(PICTURE), PICTURE)
        assert refused.value.reason == reason
        upload.discard()
    upload = DatasetUpload(root, DatasetLimits(max_image_pixels=100))
    upload.add_image(key_of(PICTURE), PICTURE)
    upload.add_pairs([Row(key_of(PICTURE), "big")])
    assert "48 x 48" in violations(upload)["images[0].data"]
    upload = await store.begin()
    with pytest.raises(DataLoss):
        upload.add_image("0" * 64, PICTURE)
    upload.discard()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("name", [IMAGES, PAIRS])
async def test_a_flipped_byte_is_found(store: DatasetStore, tmp_path: Path, name: str) -> None:
    record = await put(store, "shapes", drawn_pairs())
    path = tmp_path / "datasets" / record.id / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    stored = store.load(record.id)
    with pytest.raises(DataLoss):
        [stored.image_bytes(pair.image_key) for pair in stored.pairs]
    stored.close()


async def test_a_dataset_that_a_job_needs_stays(store: DatasetStore, database: Database) -> None:
    record = await put(store, "shapes", drawn_pairs())
    new = NewJob(kind=JobKind.FINE_TUNE, spec={"datasets": [record.id]}, name="tune")
    with database.transaction() as connection:
        job, _ = job_store.create(connection, new)
    with pytest.raises(FailedPrecondition) as refused:
        await store.delete("shapes")
    assert refused.value.reason == "DATASET_IN_USE"
    with database.transaction() as connection:
        job_store.set_state(connection, job.id, JobState.CANCELLED)
    await store.delete("shapes")
    with pytest.raises(NotFound):
        await store.get("shapes")
    with pytest.raises(NotFound):
        store.load(record.id)


async def test_what_a_crash_left_is_removed(store: DatasetStore, tmp_path: Path) -> None:
    record = await put(store, "shapes", drawn_pairs())
    unfinished = await store.begin()
    unfinished.add_image(key_of(PICTURE), PICTURE)
    (tmp_path / "datasets" / "ds-without-a-row").mkdir()
    store.open()
    assert [entry.name for entry in (tmp_path / "datasets").iterdir()] == [record.id]
    unfinished.discard()


async def test_an_upload_whose_caller_leaves_at_once_leaves_nothing(
    store: DatasetStore, tmp_path: Path
) -> None:
    for _ in range(50):
        beginning = asyncio.create_task(store.begin())
        await asyncio.sleep(0)
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
    await store.run(lambda: None)
    for _ in range(200):
        if not list((tmp_path / "datasets").iterdir()):
            break
        await asyncio.sleep(0.02)
    assert list((tmp_path / "datasets").iterdir()) == []
