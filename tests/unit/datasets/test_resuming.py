"""An upload goes on where its last checkpoint was, whatever happened since."""

from __future__ import annotations

import gc
import math
import os
import shutil
import time
import tracemalloc
import weakref
from dataclasses import fields
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.drawings import drawn_pairs, key_of
from support.uploads import TERMS, folders, put, sent, terms

from hotclip import _digest
from hotclip._digest import START
from hotclip_proto.v1 import dataset_pb2
from hotclip_server.datasets.records import DatasetLimits, DatasetRecord, Sent
from hotclip_server.datasets.report import BadRow, DatasetInvalid, DatasetReport
from hotclip_server.datasets.rows import Row
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.datasets.upload import DatasetUpload
from hotclip_server.datasets.uploads import last_used
from hotclip_server.errors import Aborted, NotFound, ResourceExhausted

PAIRS = drawn_pairs()[:8]
PARTS: list[bytes | Row] = [
    part for image, text in PAIRS for part in (image, Row(key_of(image), text, where="line"))
]


def add(upload: DatasetUpload, part: bytes | Row) -> None:
    if isinstance(part, bytes):
        upload.add_image(key_of(part), part)
    else:
        upload.add_rows([part])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.sampled_from(["add", "add", "add", "checkpoint", "suspend", "crash"]), max_size=40
    )
)
def test_nothing_is_lost_or_doubled(tmp_path: Path, steps: list[str]) -> None:
    folder = Path(mkdtemp(dir=tmp_path))
    upload = DatasetUpload(folder, DatasetLimits(), TERMS)
    safe = 0
    for step in steps:
        match step:
            case "add" if upload.parts < len(PARTS):
                add(upload, PARTS[upload.parts])
            case "checkpoint":
                safe = upload.checkpoint()
            case "suspend":
                safe = upload.parts
                upload.suspend()
                upload = DatasetUpload(folder, DatasetLimits())
            case "crash":
                # What the disk has at this moment, without the open handles.
                copy = Path(mkdtemp(dir=tmp_path))
                upload._images.flush()
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                upload.discard()
                folder, upload = copy, DatasetUpload(copy, DatasetLimits())
                assert upload.parts == safe
        assert upload.parts >= safe
    for part in PARTS[upload.parts :]:
        add(upload, part)
    staged = upload.finish(sent(upload, 8, 8))
    stored = StoredDataset(staged.folder)
    assert {(stored.image_bytes(p.image_key), p.text) for p in stored.pairs} == set(PAIRS)
    assert (staged.folder / "images.bin").stat().st_size == sum(len(image) for image, _ in PAIRS)
    stored.close()
    shutil.rmtree(staged.folder)
    upload.discard()


async def test_the_store_goes_on_after_a_restart(store: DatasetStore, tmp_path: Path) -> None:
    upload = await store.begin(terms("shapes", max_bad_rows=1))
    for part in PARTS[:7]:
        add(upload, part)
    upload.suspend()
    store.open()  # as a new process does
    again = await store.resume(upload.id)
    assert isinstance(again, DatasetUpload)
    assert (again.parts, again.terms.max_bad_rows) == (7, 1)
    for part in PARTS[7:]:
        add(again, part)
    record = await store.commit(again, sent(again, 8, 8))
    assert record.name == "shapes"
    ended = await store.resume(upload.id)
    assert isinstance(ended, DatasetRecord)
    assert ended == record
    assert folders(tmp_path / "datasets") == [record.id]
    with pytest.raises(Aborted):
        upload.add_rows([])


async def test_a_commit_that_broke_off_can_be_made_again(
    store: DatasetStore, tmp_path: Path
) -> None:
    upload = await store.begin(TERMS)
    for part in PARTS:
        add(upload, part)
    told = Sent(pairs=8, images=8)
    shutil.rmtree(upload.finish(told).folder)  # nobody published it
    upload.suspend()
    again = await store.resume(upload.id)
    assert isinstance(again, DatasetUpload)
    assert (await store.commit(again, told)).counts.pairs == 8


async def test_uploads_that_are_left_are_removed(store: DatasetStore, tmp_path: Path) -> None:
    root = tmp_path / "datasets"
    old, new = await store.begin(TERMS), await store.begin(TERMS)
    kept = await put(store, "kept", PAIRS)
    for upload in (old, new):
        upload.suspend()
    for path in (old.folder, *old.folder.iterdir()):
        os.utime(path, (0, 0))
    store.open()
    assert folders(root) == sorted([kept.id, f"uploads/{new.id}"])
    with pytest.raises(NotFound):
        await store.resume(old.id)


async def test_an_upload_that_works_is_not_too_old(store: DatasetStore, tmp_path: Path) -> None:
    upload = await store.begin(TERMS)
    for path in (upload.folder, *upload.folder.iterdir()):
        os.utime(path, (0, 0))
    other = await store.begin(TERMS)  # looks for old ones
    add(upload, PARTS[0])
    for each in (upload, other):
        each.discard()


async def test_of_too_many_the_one_that_was_left_gives_way(
    store: DatasetStore, tmp_path: Path
) -> None:
    uploads = [await store.begin(TERMS) for _ in range(DatasetLimits().max_uploads)]
    left, just_left, works = uploads[:3]
    for upload in (left, just_left):
        upload.suspend()
    with pytest.raises(ResourceExhausted) as refused:
        await store.begin(TERMS)
    assert refused.value.reason == "UPLOADS_TOO_MANY"
    long_ago = time.time() - DatasetLimits().upload_idle_s - 1
    for upload in (left, works):
        for path in (upload.folder, *upload.folder.iterdir()):
            os.utime(path, (long_ago, long_ago))
    new = await store.begin(TERMS)
    assert not left.folder.exists()
    with pytest.raises(NotFound, match="gave way"):
        await store.resume(left.id)
    # Nor one that a call works on, however slowly, nor one that was left a moment ago.
    with pytest.raises(ResourceExhausted):
        await store.begin(TERMS)
    again = await store.resume(just_left.id)
    assert isinstance(again, DatasetUpload)
    for upload in (*uploads[2:], again, new):
        upload.discard()


def test_client_and_server_count_the_same_checksum(tmp_path: Path) -> None:
    upload = DatasetUpload(tmp_path / "up", DatasetLimits(), TERMS)
    image = PAIRS[0][0]
    row = Row(key_of(image), "ä\0", "g", "", 0.1, ("n", ""), ("k",), where="line 3 – x")
    pair = dataset_pb2.DatasetPair(
        image_key=row.image_key,
        text=row.text,
        group="g",
        score=0.1,
        negative_texts=("n", ""),
        negative_image_keys=("k",),
        where=row.where,
    )
    plain = dataset_pb2.DatasetPair(image_key=row.image_key, text="b")
    upload.add_image(key_of(image), image)
    upload.add_rows([row, Row(row.image_key, "b")])
    upload.add_rejected([BadRow("line 4", "image", "gone")])
    told = dataset_pb2.RejectedRow(where="line 4", field="image", reason="gone")
    digest = START
    for part in (
        dataset_pb2.UploadDatasetRequest(image=dataset_pb2.DatasetImage(key=key_of(image))),
        dataset_pb2.UploadDatasetRequest(pairs=dataset_pb2.DatasetPairs(pairs=[pair, plain])),
        dataset_pb2.UploadDatasetRequest(rejected=dataset_pb2.RejectedRows(rows=[told])),
    ):
        digest = _digest.after(digest, part)
    assert digest.hex() == upload.digest
    upload.discard()


def test_memory_does_not_grow_with_the_upload(tmp_path: Path) -> None:
    upload = DatasetUpload(tmp_path / "up", DatasetLimits(), TERMS)
    image = PAIRS[0][0]
    upload.add_image(key_of(image), image)
    tracemalloc.start()
    for block in range(100):
        upload.add_rows([Row(key_of(image), f"{block} {i} " + "x" * 400) for i in range(100)])
    staged = upload.finish(sent(upload, 10_000, 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert staged.counts.size_bytes > 4 << 20
    assert peak < 1 << 20
    upload.discard()


def test_a_folder_that_is_being_removed_is_left_alone(tmp_path: Path) -> None:
    assert last_used(tmp_path / "gone") == math.inf
    assert last_used(tmp_path) <= tmp_path.stat().st_mtime


async def test_a_refusal_holds_on_to_no_message(store: DatasetStore) -> None:
    class Message:
        """As large as a client likes."""

    def read(_: Message) -> None:
        raise DatasetInvalid(report, 0)

    report = DatasetReport.from_json(
        {**dict.fromkeys((f.name for f in fields(DatasetReport)), 0), "listed": [], "notes": []}
    )
    upload = await store.begin(TERMS)
    message = Message()
    left = weakref.ref(message)
    try:
        read(message)
    except DatasetInvalid as error:
        await store.refuse(upload, error)
    del message
    gc.collect()
    assert left() is None
    for _ in range(2):
        with pytest.raises(DatasetInvalid) as again:
            await store.resume(upload.id)
        assert again.value.report is report
        assert "0 of 0 rows are bad" in again.value.message
