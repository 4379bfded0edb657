"""Versions of the weights of others: in between, and the mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.small_models import write_model

from hotclip_server.errors import FailedPrecondition, ResourceExhausted
from hotclip_server.models.manifest import WEIGHTS_FILE
from hotclip_server.models.merge import average_versions, merge_versions
from hotclip_server.models.store import VersionStore


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path / "versions", models_dir=tmp_path / "models")


def make(store: VersionStore, folder: Path, kind: str, seed: int) -> str:
    write_model(folder / "models" / f"{kind}{seed}", kind, seed=seed)
    return store.import_source(f"local:{kind}{seed}").id


def test_a_soup_is_the_mean(store: VersionStore, tmp_path: Path) -> None:
    versions = [make(store, tmp_path, "resnet", seed) for seed in range(3)]
    made = average_versions(store, versions)
    assert made.parent == versions[0]
    assert made.source == "soup:" + ":".join(versions)
    found = load_file(store.folder(made.id) / WEIGHTS_FILE)
    parts = [load_file(store.folder(version) / WEIGHTS_FILE) for version in versions]
    for name, value in found.items():
        if value.is_floating_point():
            mean = torch.stack([part[name].double() for part in parts]).mean(0)
            assert torch.equal(value, mean.float()) or torch.allclose(
                value.double(), mean, atol=1e-7
            )
        else:
            assert torch.equal(value, parts[0][name])
    assert average_versions(store, versions[:1] + versions[:1]).id == versions[0]


def test_the_ends_of_the_line_are_the_versions(store: VersionStore, tmp_path: Path) -> None:
    base, tuned = (make(store, tmp_path, "clip", seed) for seed in range(2))
    assert merge_versions(store, base, tuned, 1.0).id == tuned
    ends = load_file(store.folder(merge_versions(store, base, tuned, 0.0).id) / WEIGHTS_FILE)
    for name, value in load_file(store.folder(base) / WEIGHTS_FILE).items():
        assert torch.equal(ends[name], value)


def test_a_tower_that_nobody_trained_stays_the_same_encoder(
    store: VersionStore, tmp_path: Path
) -> None:
    base, tuned = (make(store, tmp_path, "clip", seed) for seed in range(2))
    with torch.no_grad():  # -0.0 among the weights, as half precision makes it
        encoder = store.load(base, device="cpu")
        for value in encoder.model.visual.parameters():
            value[value.abs() < value.abs().median()] = -0.0
        locked = store.save_trained(encoder.model, base=base, source="locked")
        for name, value in encoder.model.named_parameters():
            if not name.startswith("visual."):
                value.add_(0.01)
        trained = store.save_trained(encoder.model, base=locked.id, source="trained")
    vision = locked.spec.vision_encoder_id
    assert trained.spec.vision_encoder_id == vision
    assert trained.spec.text_encoder_id != locked.spec.text_encoder_id
    for alpha in (0.0, 0.3, 1.0):
        made = merge_versions(store, locked.id, trained.id, alpha)
        assert made.spec.vision_encoder_id == vision
    assert average_versions(store, [locked.id, trained.id]).spec.vision_encoder_id == vision
    assert vision != store.read_manifest(tuned).spec.vision_encoder_id


def test_two_architectures_do_not_mix(store: VersionStore, tmp_path: Path) -> None:
    clip, resnet = make(store, tmp_path, "clip", 0), make(store, tmp_path, "resnet", 0)
    for work in (
        lambda: average_versions(store, [clip, resnet]),
        lambda: merge_versions(store, clip, resnet, 0.5),
    ):
        with pytest.raises(FailedPrecondition) as caught:
            work()
        assert caught.value.reason == "ARCHITECTURES_DIFFER"


def test_what_does_not_fit_into_memory_is_not_read(store: VersionStore, tmp_path: Path) -> None:
    versions = [make(store, tmp_path, "clip", seed) for seed in range(2)]
    size = store.read_manifest(versions[0]).size_bytes
    asked: list[int] = []

    def require(size_bytes: int, what: str) -> None:
        asked.append(size_bytes)
        raise ResourceExhausted(what, reason="OUT_OF_MEMORY")

    small = VersionStore(tmp_path / "versions", require_memory=require)
    for version in versions:
        (small.folder(version) / WEIGHTS_FILE).write_bytes(b"")  # which nobody gets to see
    with pytest.raises(ResourceExhausted):
        merge_versions(small, *versions, 0.5)
    with pytest.raises(ResourceExhausted):
        average_versions(small, versions)
    assert asked == [2 * size, 2 * size]
