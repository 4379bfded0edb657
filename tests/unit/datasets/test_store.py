from __future__ import annotations

import asyncio
import errno
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
from support.drawings import draw, drawn_pairs, key_of
from support.uploads import TERMS, folders, put, sent, terms

from hotclip_server.datasets.records import DatasetLimits, Sent, UploadTerms
from hotclip_server.datasets.report import BadRow, DatasetInvalid, DatasetReport
from hotclip_server.datasets.rows import Row
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.datasets.upload import IMAGES, MANIFEST, PAIRS, DatasetUpload
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


async def refused(
    store: DatasetStore,
    images: list[bytes],
    rows: list[Row],
    allowed: UploadTerms | None = None,
) -> DatasetReport:
    """The report of an upload that is refused."""
    upload = await store.begin(allowed or terms())
    for image in images:
        upload.add_image(key_of(image), image)
    upload.add_rows(rows)
    with pytest.raises(DatasetInvalid) as error:
        await store.commit(upload, sent(upload, len(rows), len(images)))
    upload.discard()
    named = [f"{row.where}.{row.field}" for row in error.value.report.listed]
    assert [v.field for v in error.value.violations] == named[:20]
    return error.value.report


def listed(report: DatasetReport) -> dict[str, str]:
    return {f"{row.where}.{row.field}": row.reason for row in report.listed}


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
    assert folders(tmp_path / "datasets") == [record.id]
    folder = tmp_path / "datasets" / record.id
    size = sum((folder / name).stat().st_size for name in ("images.bin", "pairs.jsonl"))
    assert record.counts.size_bytes == size


async def test_same_content_is_the_same_dataset_in_any_order(store: DatasetStore) -> None:
    pairs = drawn_pairs()
    first = await put(store, "shapes", pairs)
    random.Random(1).shuffle(pairs)
    assert first.report == (await store.get("shapes")).report
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
    found = await store.list(limit=9)
    assert [record.id for record in found] == [unnamed.id, first.id]
    assert [record.report for record in found] == [None, None]
    before = (unnamed.create_time, unnamed.id)
    assert [record.id for record in await store.list(limit=9, before=before)] == [first.id]


async def test_an_id_is_no_other_datasets_name(store: DatasetStore) -> None:
    pairs = drawn_pairs()
    wanted = (await put(store, "first", pairs[:3])).id
    await store.delete("first")
    await put(store, wanted, pairs[:5])
    assert (await store.get(wanted)).counts.pairs == 5
    assert (await put(store, "second", pairs[:3])).id == wanted
    assert (await store.get(wanted)).name == "second"
    loaded = store.load(wanted)
    assert len(loaded.pairs) == 3
    loaded.close()


async def test_every_bad_row_is_named(store: DatasetStore, tmp_path: Path) -> None:
    key = key_of(PICTURE)
    broken = PICTURE[: len(PICTURE) // 2]
    rows = [
        Row(key, "good"),
        Row(key, "  ", where="line 3"),
        Row(key, "x" * 9000),
        Row("nothing", "text"),
        Row("0" * 64, "text"),
        Row(key_of(broken), "b"),
        Row(key_of(broken), "b", where="line 9"),
        Row(key, "c", negative_images=(key_of(b"hello"),)),
    ]
    report = await refused(store, [PICTURE, broken, b"hello"], rows)
    assert (report.rows, report.bad_rows) == (8, 7)
    found = listed(report)
    assert list(found) == [
        *("line 3.text", "pairs[2].text", "pairs[3].image"),
        *("pairs[4].image", "pairs[5].image", "pairs[7].negative_images"),
    ]
    assert found["pairs[4].image"] == "the image never came"
    assert "cannot be decoded" in found["pairs[5].image"]
    assert "not a JPEG, PNG or WebP" in found["pairs[7].negative_images"]
    assert "9000 bytes" in found["pairs[2].text"]
    assert folders(tmp_path / "datasets") == []


async def test_bad_rows_that_are_allowed_are_left_out(store: DatasetStore) -> None:
    images = [image for image, _ in drawn_pairs()[:3]]
    broken = images[2][:-30]
    rows = [
        *(Row(key_of(image), f"text {i}") for image in images[:2] for i in range(4)),
        Row(key_of(images[0]), "text 0"),
        Row(key_of(broken), "cut", where="line 10"),
        Row(key_of(images[2]), "", where="line 11"),
    ]
    assert (await refused(store, [*images, broken], rows, terms(max_bad_rows=1))).bad_rows == 2
    few = terms(max_bad_share=0.16)
    assert (await refused(store, [*images, broken], rows, few)).bad_rows == 2
    upload = await store.begin(terms("some", max_bad_share=0.25))
    for image in (*images, broken):
        upload.add_image(key_of(image), image)
    upload.add_rows(rows)
    upload.add_rejected([BadRow("line 12", "image", "is not there")])
    told = Sent(pairs=len(rows), images=4, notes=("2 files were not used",))
    record = await store.commit(upload, told)
    assert (record.counts.pairs, record.counts.images, record.counts.duplicate_pairs) == (8, 2, 1)
    report = record.report
    assert report is not None
    assert (report.rows, report.bad_rows, report.duplicate_pairs) == (12, 3, 1)
    assert [row.where for row in report.listed] == ["line 11", "line 12", "line 10"]
    assert (report.images_with_several_texts, report.texts_with_several_images) == (2, 4)
    assert (report.most_frequent_text, report.most_frequent_text_pairs) == ("text 0", 2)
    assert (report.min_width, report.max_height, report.formats) == (48, 48, {"PNG": 2})
    assert report.max_image_bytes == max(map(len, images[:2]))
    assert report.notes == ("2 files were not used",)
    assert (await store.get("some")).report == report
    stored = store.load(record.id)
    assert sorted(stored.image_keys) == sorted(map(key_of, images[:2]))
    assert [stored.image_bytes(key_of(image)) for image in images[:2]] == images[:2]
    stored.close()


async def test_labels_scores_and_negatives(store: DatasetStore) -> None:
    images = [image for image, _ in drawn_pairs()[:3]]
    keys = [key_of(image) for image in images]
    upload = await store.begin(terms("labelled"))
    for image in images:
        upload.add_image(key_of(image), image)
    rows = [
        Row(keys[0], "", label="square"),
        Row(keys[1], "red circle", "g", "circle", 0.5, ("blue circle",), (keys[2],)),
    ]
    upload.add_rows(rows)
    record = await store.commit(upload, sent(upload, 2, 3))
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
    rows = [
        Row(key, "", label=" "),
        Row(key, " ", label="a"),
        Row(key, "a", label="x" * 2000),
        Row(key, "a", score=1.5),
        Row(key, "a", score=float("nan")),
        Row(key, "a", negative_texts=("c", "", "a", "b" * 9000)),
        Row(key, "a", negative_images=(key, "x", "0" * 64)),
        Row(key, "a", negative_texts=("b",) * 65),
        Row(key, "a", negative_images=("0" * 64,)),
    ]
    found = listed(await refused(store, [PICTURE], rows))
    assert list(found) == [
        *("pairs[0].text", "pairs[1].text", "pairs[2].label", "pairs[3].score", "pairs[4].score"),
        *("pairs[5].negative_texts[3]", "pairs[6].negative_images[0]"),
        *("pairs[7].negative_texts", "pairs[8].negative_images"),
    ]
    assert found["pairs[5].negative_texts[3]"] == (
        "has 9000 bytes, the limit is 8192; negative_texts[1] is empty; "
        "negative_texts[2] is the text of the row itself"
    )


async def test_empty_unused_and_incomplete(store: DatasetStore) -> None:
    other = draw("blue", "cross", file_format="JPEG")
    for images, rows, told, field in (
        ([], [], Sent(pairs=0, images=0), "pairs"),
        ([PICTURE, other], [Row(key_of(PICTURE), "a")], Sent(pairs=1, images=2), "images[1].key"),
        ([PICTURE], [Row(key_of(PICTURE), "a")], Sent(pairs=2, images=1), "close.pairs"),
        ([PICTURE], [Row(key_of(PICTURE), "a")], Sent(pairs=1, images=0), "close.images"),
        (
            *([PICTURE], [Row(key_of(PICTURE), "a")]),
            *(Sent(pairs=1, images=1, digest="00"), "close.digest"),
        ),
    ):
        upload = await store.begin(TERMS)
        for image in images:
            upload.add_image(key_of(image), image)
        upload.add_rows(rows)
        with pytest.raises(InvalidArgument) as error:
            await store.commit(upload, told)
        assert [violation.field for violation in error.value.violations] == [field]
        upload.discard()


async def test_a_hopeless_upload_ends_early(store: DatasetStore, tmp_path: Path) -> None:
    rows = [Row("0" * 64, "")] * 2000
    upload = await store.begin(TERMS)
    with pytest.raises(DatasetInvalid) as error:
        upload.add_rows(rows)
    assert error.value.report.bad_rows == len(error.value.report.listed) + 1 == 1001
    upload.discard()
    upload = await store.begin(terms(max_bad_share=0.9))
    upload.add_rows(rows)
    upload.discard()
    assert folders(tmp_path / "datasets") == []


async def test_limits_and_checksum(tmp_path: Path, store: DatasetStore) -> None:
    folder = tmp_path / "upload"
    for limits, reason in (
        (DatasetLimits(max_bytes=len(PICTURE) // 2), "DATASET_TOO_LARGE"),
        (DatasetLimits(min_free_disk_bytes=1 << 60), "DISK_FULL"),
    ):
        upload = DatasetUpload(folder, limits, TERMS)
        with pytest.raises(ResourceExhausted) as error:
            upload.add_image(key_of(PICTURE), PICTURE)
        assert error.value.reason == reason
        upload.discard()
    upload = DatasetUpload(folder, DatasetLimits(max_image_pixels=100), TERMS)
    upload.add_image(key_of(PICTURE), PICTURE)
    upload.add_rows([Row(key_of(PICTURE), "big")])
    with pytest.raises(DatasetInvalid, match="48 x 48"):
        upload.finish(sent(upload, 1, 1))
    upload.discard()
    upload = await store.begin(TERMS)
    with pytest.raises(DataLoss):
        upload.add_image("0" * 64, PICTURE)
    with pytest.raises(InvalidArgument):
        upload.add_image("../key", PICTURE)
    upload.discard()
    assert not folder.exists()
    assert folders(tmp_path / "datasets") == []


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


async def test_a_disk_that_gives_nothing_back_is_damage_too(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store.load((await put(store, "shapes", drawn_pairs())).id)
    key = stored.pairs[0].image_key

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(DataLoss, match="row 1 of"):
        stored.pairs[1]
    with pytest.raises(DataLoss, match=f"image {key}"):
        stored.image_bytes(key)
    stored.close()


async def test_a_damaged_manifest_is_damage_too(store: DatasetStore, tmp_path: Path) -> None:
    record = await put(store, "shapes", drawn_pairs()[:2])
    path = tmp_path / "datasets" / record.id / MANIFEST
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            stored = store.load(record.id)
        except DataLoss:
            continue
        with suppress(DataLoss):
            assert {pair.text for pair in stored.pairs} == {"a red square", "a red circle"}
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
    root = tmp_path / "datasets"
    record = await put(store, "shapes", drawn_pairs())
    unfinished = await store.begin(TERMS)
    (root / "ds-without-a-row").mkdir()
    (root / "uploads" / ".tmp-half").mkdir()
    store.open()
    assert folders(root) == sorted([record.id, f"uploads/{unfinished.id}"])
    unfinished.discard()


async def test_an_upload_whose_caller_leaves_at_once_leaves_nothing(
    store: DatasetStore, tmp_path: Path
) -> None:
    for _ in range(50):
        beginning = asyncio.create_task(store.begin(TERMS))
        await asyncio.sleep(0)
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
    await store.run(lambda: None)
    for _ in range(200):
        if not folders(tmp_path / "datasets"):
            break
        await asyncio.sleep(0.02)
    assert folders(tmp_path / "datasets") == []
