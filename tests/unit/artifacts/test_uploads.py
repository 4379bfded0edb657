"""Uploads go on where they broke off; what is no model leaves nothing behind."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotclip_server.artifacts.archive import write_archive
from hotclip_server.artifacts.records import ArtifactFormat
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.artifacts.uploads import IDLE_S, ArtifactUploads, UploadLimits
from hotclip_server.errors import DataLoss, HotclipError, InvalidArgument, OutOfRange
from hotclip_server.storage.database import Database

LIMITS = UploadLimits(max_bytes=100_000, min_free_disk_bytes=0, expiry_s=3600)


@pytest.fixture
def artifacts(tmp_path: Path) -> Iterator[ArtifactStore]:
    database = Database(f"sqlite:///{tmp_path / 'hotclip.db'}")
    database.open()
    with ThreadPoolExecutor(1) as pool:
        store = ArtifactStore(tmp_path / "artifacts", database, pool)
        store.open()
        yield store
    database.close()


@pytest.fixture
def uploads(artifacts: ArtifactStore, tmp_path: Path) -> ArtifactUploads:
    return ArtifactUploads(tmp_path / "artifacts" / "uploads", artifacts, LIMITS)


def archive(folder: Path, *names: str) -> bytes:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode() * 100)
    path = folder / "made"
    write_archive(path, "m", {name: folder / name for name in names})
    content = path.read_bytes()
    path.unlink()
    return content


CLIP = ("open_clip_config.json", "open_clip_model.safetensors")
ONNX = ("clip-text.onnx", "clip-vision.onnx", "hotclip_local.json")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (CLIP, ArtifactFormat.OPEN_CLIP),
        ((*CLIP, *ONNX), ArtifactFormat.ONNX),
        (("hotclip_delta.json", "hotclip_delta.safetensors"), ArtifactFormat.DELTA),
    ],
)
def test_an_upload_goes_on_in_another_process(
    uploads: ArtifactUploads,
    artifacts: ArtifactStore,
    tmp_path: Path,
    names: tuple[str, ...],
    kind: ArtifactFormat,
) -> None:
    content = archive(tmp_path / "in", *names)
    sha256, total = hashlib.sha256(content).hexdigest(), len(content)
    assert uploads.state(sha256).offset == 0
    assert uploads.write(sha256, total, 0, content[:1000]).offset == 1000
    later = ArtifactUploads(tmp_path / "artifacts" / "uploads", artifacts, LIMITS)
    assert later.state(sha256).offset == 1000
    assert later.write(sha256, total, 0, content[:1000]).offset == 1000  # sent twice
    with pytest.raises(OutOfRange):
        later.write(sha256, total, 2000, content[2000:])
    done = later.write(sha256, total, 1000, content[1000:])
    assert done.artifact is not None
    assert (done.artifact.format, done.artifact.sha256) == (kind, sha256)
    assert artifacts.path(done.artifact).read_bytes() == content
    assert later.state(sha256) == done
    assert later.write(sha256, total, 0, content[:10]) == done
    assert not list((tmp_path / "artifacts" / "uploads").iterdir())


def test_bad_uploads_leave_nothing(uploads: ArtifactUploads, tmp_path: Path) -> None:
    content = archive(tmp_path / "in", *CLIP)
    total, other = len(content), "0" * 64
    sha256 = hashlib.sha256(content).hexdigest()
    with pytest.raises(DataLoss):
        uploads.write(other, total, 0, content)
    for names in (CLIP[:1], CLIP[1:], ("hotclip_delta.json", CLIP[1])):
        wrong = archive(tmp_path / "wrong", *names)
        with pytest.raises(InvalidArgument) as caught:
            uploads.write(hashlib.sha256(wrong).hexdigest(), len(wrong), 0, wrong)
        assert caught.value.reason == "ARTIFACT_INVALID"
    for name, size, offset, data in (
        ("../../etc/passwd", 1, 0, b"x"),
        (sha256.upper(), 1, 0, b"x"),
        (sha256, 1, 0, b""),
        (sha256, 1, 0, b"xx"),
        (sha256, LIMITS.max_bytes + 1, 0, b"x"),
    ):
        with pytest.raises(HotclipError):
            uploads.write(name, size, offset, data)
    folder = tmp_path / "artifacts" / "uploads"
    assert not folder.exists() or not list(folder.iterdir())


def test_old_uploads_make_room(uploads: ArtifactUploads, tmp_path: Path) -> None:
    for number in range(16):
        uploads.write(f"{number:064x}", 100, 0, b"x")
    with pytest.raises(HotclipError, match="unfinished"):
        uploads.write("f" * 64, 100, 0, b"x")
    old = tmp_path / "artifacts" / "uploads" / f"{3:064x}.part"
    os.utime(old, (0, 0))
    assert uploads.write("f" * 64, 100, 0, b"x").offset == 1
    assert not old.exists()
    # Neither did one grow too old nor was one left for long.
    with pytest.raises(HotclipError, match="unfinished"):
        uploads.write("e" * 64, 100, 0, b"x")
    left = tmp_path / "artifacts" / "uploads" / f"{5:064x}.part"
    long_ago = time.time() - IDLE_S - 1
    os.utime(left, (long_ago, long_ago))
    assert uploads.write("e" * 64, 100, 0, b"x").offset == 1
    assert not left.exists()
