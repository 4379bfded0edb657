"""Versions on disk are whole, verified and named by their content."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from support.small_models import TEXTS, write_model

from hotclip_server.encoding.features import unit_rows
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from hotclip_server.models.manifest import MANIFEST_FILE, WEIGHTS_FILE
from hotclip_server.models.store import VersionStore
from hotclip_server.models.unrecorded import MARK
from hotclip_server.pace import PIECE_BYTES


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    for kind in ("clip", "mini", "siglip"):
        write_model(tmp_path / "models" / kind, kind)
    return VersionStore(tmp_path / "versions", models_dir=tmp_path / "models")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_import_save_load(store: VersionStore) -> None:
    manifest = store.import_source("local:mini")
    assert manifest == store.read_manifest(manifest.id)
    assert (manifest.parent, manifest.source) == ("", "local:mini")
    encoder = store.load(manifest.id)
    assert encoder.spec == manifest.spec
    assert (encoder.spec.dim, encoder.spec.image_size, encoder.spec.context_length) == (24, 32, 16)
    assert manifest.size_bytes == (store.folder(manifest.id) / WEIGHTS_FILE).stat().st_size


@pytest.mark.parametrize("kind", ["clip", "mini", "siglip"])
def test_a_version_is_a_folder_of_open_clip(store: VersionStore, kind: str) -> None:
    manifest = store.import_source(f"local:{kind}")
    name = f"local-dir:{store.folder(manifest.id)}"
    theirs = open_clip.create_model(name).eval()
    with torch.no_grad():
        expected = theirs.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
    encoder = store.load(manifest.id)
    vectors = encoder.encode(Tower.TEXT, [encoder.prepare_text(text) for text in TEXTS])
    np.testing.assert_allclose(unit_rows(vectors), expected.numpy(), atol=1e-6)


def test_the_same_content_is_the_same_version(store: VersionStore, tmp_path: Path) -> None:
    first = store.import_source("local:mini")
    assert store.import_source("local:mini") == first
    shutil.copytree(store.folder(first.id), tmp_path / "models" / "copy")
    again = store.import_source("local:copy")
    assert again.id == first.id
    other = VersionStore(tmp_path / "other", models_dir=tmp_path / "models")
    assert other.import_source("local:copy").id == first.id
    assert names(tmp_path / "versions") == {first.id}


def test_half_precision_gives_the_same_encoders(store: VersionStore, tmp_path: Path) -> None:
    half = store.import_source(f"local:{write_model(tmp_path / 'models' / 'half', half=True).name}")
    encoder = store.load(half.id)
    model = encoder.model.half()
    again = store.save_trained(model, base=half.id, source="job:1")
    assert again.spec.space_id == half.spec.space_id


def test_a_trained_version(store: VersionStore) -> None:
    base = store.import_source("local:mini")
    model = store.load(base.id).model
    with torch.no_grad():
        model.positional_embedding.add_(0.5)
    trained = store.save_trained(model, base=base.id, source="job:7")
    assert (trained.parent, trained.source) == (base.id, "job:7")
    assert trained.spec.vision_encoder_id == base.spec.vision_encoder_id
    assert trained.spec.text_encoder_id != base.spec.text_encoder_id
    assert trained.spec.space_id != base.spec.space_id
    assert trained.spec.architecture == base.spec.architecture
    assert names(store.folder(trained.id)) == names(store.folder(base.id))
    loaded = store.load(trained.id)
    item = loaded.prepare_text("a photo")
    expected = model.encode_text(loaded.tokenizer(["a photo"]))
    np.testing.assert_allclose(loaded.encode(Tower.TEXT, [item]), expected.numpy(), atol=1e-5)


def test_a_diverged_model_leaves_nothing(store: VersionStore, tmp_path: Path) -> None:
    base = store.import_source("local:mini")
    model = store.load(base.id).model
    with torch.no_grad():
        model.text_projection[0, 0] = torch.inf
    with pytest.raises(FailedPrecondition):
        store.save_trained(model, base=base.id, source="job:1")
    assert names(tmp_path / "versions") == {base.id}


@pytest.mark.parametrize(
    "name", [WEIGHTS_FILE, "open_clip_config.json", "tokenizer.json", "hotclip_tokenizer.json"]
)
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_damage_is_found_on_load_and_healed_by_import(
    store: VersionStore, name: str, how: str
) -> None:
    version = store.import_source("local:mini").id
    path = store.folder(version) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(bytes(data) if how == "flip" else bytes(data)[:-1])
    with pytest.raises(DataLoss, match=name):
        store.load(version)
    assert store.import_source("local:mini").id == version
    store.load(version)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"id": "x"}'])
def test_a_damaged_manifest(store: VersionStore, content: str) -> None:
    version = store.import_source("local:mini").id
    (store.folder(version) / MANIFEST_FILE).write_text(content)
    with pytest.raises(DataLoss):
        store.read_manifest(version)
    with pytest.raises(DataLoss):
        store.load(version)


def test_a_manifest_that_describes_something_else(store: VersionStore) -> None:
    version = store.import_source("local:mini").id
    path = store.folder(version) / MANIFEST_FILE
    content = json.loads(path.read_text())
    content["spec"]["text_encoder_id"] = "0" * 32
    path.write_text(json.dumps(content))
    with pytest.raises(DataLoss):
        store.read_manifest(version)


@pytest.mark.parametrize("version", ["", "0" * 16, "..", "../../etc", "A" * 16, "0" * 15 + "/"])
def test_versions_that_are_not_there(store: VersionStore, version: str) -> None:
    with pytest.raises(NotFound):
        store.read_manifest(version)
    with pytest.raises(NotFound):
        store.load(version)
    store.delete(version)


def test_delete(store: VersionStore, tmp_path: Path) -> None:
    version = store.import_source("local:mini").id
    store.delete(version)
    assert not names(tmp_path / "versions")
    with pytest.raises(NotFound):
        store.load(version)


def test_what_a_crash_left_is_removed(store: VersionStore, tmp_path: Path) -> None:
    version = store.import_source("local:mini").id
    (tmp_path / "versions" / ".tmp-1234").mkdir()
    assert store.remove_leftovers() == 1
    assert names(tmp_path / "versions") == {version}


def test_a_device_that_does_not_exist(store: VersionStore) -> None:
    version = store.import_source("local:mini").id
    with pytest.raises(InvalidArgument):
        store.load(version, device="abacus")


def test_others_get_their_turn_while_it_loads(tmp_path: Path) -> None:
    """Between the pieces of each step, the largest of which is about a MiB."""
    write_model(tmp_path / "models" / "clip")
    pauses: list[str] = []

    def pause() -> None:
        frame = sys._getframe(1)
        pauses.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")

    store = VersionStore(tmp_path / "versions", models_dir=tmp_path / "models", pause=pause)
    version = store.import_source("local:clip")
    pieces = version.size_bytes / PIECE_BYTES
    assert pieces > 4
    for step in ("fingerprint.encoder_id", "atomic.sha256_file"):
        assert pauses.count(step) >= pieces - 1, step
    pauses.clear()
    store.load(version.id)
    for step in ("atomic.sha256_file", "weights.read_weights"):
        assert pauses.count(step) >= pieces - 1, step
    assert "architecture.__torch_function__" in pauses


def test_versions_share_the_tokenizer_that_is_open_clips_own(store: VersionStore) -> None:
    one = store.import_source("local:clip")
    encoders = [store.load(one.id), store.load(one.id)]
    assert encoders[0].tokenizer is encoders[1].tokenizer
    mini = store.import_source("local:mini")
    assert store.load(mini.id).tokenizer is not store.load(mini.id).tokenizer


def test_what_was_never_recorded_is_removed(store: VersionStore, tmp_path: Path) -> None:
    kept, lost = (store.import_source(f"local:{kind}").id for kind in ("clip", "mini"))
    store.note_recorded(kept, recorded=True)
    assert names(store.folder(lost)) - names(store.folder(kept)) >= {MARK}
    again = VersionStore(tmp_path / "versions", models_dir=tmp_path / "models")
    again.remove_unrecorded({kept})
    assert names(tmp_path / "versions") == {kept}
    # Without a mark nothing is removed, though the database knows nothing of it.
    again.remove_unrecorded(set())
    again.load(kept)
    # A crash in a deletion, before the row is gone and after.
    again.note_recorded(kept, recorded=False)
    again.remove_unrecorded({kept})
    assert MARK not in names(again.folder(kept))
    again.note_recorded(kept, recorded=False)
    again.remove_unrecorded(set())
    assert names(tmp_path / "versions") == set()
    for nothing in (kept, "..", ""):
        again.note_recorded(nothing, recorded=False)
    assert names(tmp_path) == {"models", "versions"}
