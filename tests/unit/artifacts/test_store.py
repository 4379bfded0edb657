"""Artifacts on disk are whole, verified and named by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotclip_server.artifacts.records import ArtifactFormat, ArtifactRecord, Origin
from hotclip_server.artifacts.store import CHUNK_BYTES, ArtifactStore
from hotclip_server.errors import DataLoss, FailedPrecondition, NotFound
from hotclip_server.jobs import store as job_store
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.database import Database

CONTENT = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"the end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path, database: Database) -> Iterator[ArtifactStore]:
    with ThreadPoolExecutor(2) as pool:
        made = ArtifactStore(tmp_path / "artifacts", database, pool)
        made.open()
        yield made


def add(store: ArtifactStore, content: bytes = CONTENT, version: str = "v1") -> ArtifactRecord:
    with store.scratch() as folder:
        file = folder / "new.tar"
        file.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return store.add(file, digest, ArtifactFormat.OPEN_CLIP, Origin(version=version))


def read(store: ArtifactStore, record: ArtifactRecord, offset: int) -> tuple[bytes, str]:
    chunks = [chunk for chunk in store.chunks(record, offset) if chunk.data or chunk.sha256]
    places = [offset + sum(len(c.data) for c in chunks[:i]) for i in range(len(chunks))]
    assert [chunk.offset for chunk in chunks] == places
    assert all(not chunk.sha256 for chunk in chunks[:-1])
    return b"".join(chunk.data for chunk in chunks), chunks[-1].sha256


@pytest.mark.parametrize(
    "offset", [0, 1, CHUNK_BYTES, len(CONTENT) - 1, len(CONTENT), 2 * CHUNK_BYTES + 5]
)
def test_a_file_is_read_from_any_offset(store: ArtifactStore, offset: int) -> None:
    record = add(store)
    assert read(store, record, offset) == (CONTENT[offset:], SHA256)


async def test_the_same_content_is_one_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    first, second = add(store), add(store)
    assert first == second
    assert await store.list(limit=10) == [first]
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [f"{first.id}.tar"]
    found = store.find_export(ArtifactFormat.OPEN_CLIP, Origin(version="v1"))
    assert found == first
    assert store.find_export(ArtifactFormat.ONNX, Origin(version="v1")) is None


@pytest.mark.parametrize("offset", [0, CHUNK_BYTES + 3])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_told_before_the_last_chunk(
    store: ArtifactStore, offset: int, damage: str
) -> None:
    record = add(store)
    path = store.path(record)
    changed = bytearray(CONTENT)
    changed[7] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(changed if damage == "flip" else CONTENT[: CHUNK_BYTES // 2])
    with pytest.raises(DataLoss):
        read(store, record, offset)
    with pytest.raises(DataLoss):
        store.load(record.id)
    assert store.find_export(ArtifactFormat.OPEN_CLIP, Origin(version="v1")) is None
    assert add(store) == record  # and is healed by the same content
    assert read(store, record, offset) == (CONTENT[offset:], SHA256)


async def test_what_a_job_needs_is_not_deleted(store: ArtifactStore, database: Database) -> None:
    record = add(store)
    new = NewJob(kind=JobKind.IMPORT, spec={"artifact": record.id})
    with database.transaction() as connection:
        job, _ = job_store.create(connection, new)
    with pytest.raises(FailedPrecondition) as caught:
        await store.delete(record.id)
    assert caught.value.reason == "ARTIFACT_IN_USE"
    with database.transaction() as connection:
        job_store.set_state(connection, job.id, JobState.CANCELLED)
    chunks = store.chunks(record, 0)
    next(chunks)
    await store.delete(record.id)
    assert sum(len(chunk.data) for chunk in chunks) == len(CONTENT) - CHUNK_BYTES
    with pytest.raises(NotFound):
        await store.get(record.id)


def test_opening_removes_what_a_crash_left(store: ArtifactStore, tmp_path: Path) -> None:
    record = add(store)
    root = tmp_path / "artifacts"
    (root / "art-0123.tar").write_bytes(b"no row")
    (root / ".tmp-1").mkdir()
    store.open()
    assert [path.name for path in root.iterdir()] == [f"{record.id}.tar"]
