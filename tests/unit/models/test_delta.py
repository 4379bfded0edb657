"""A delta holds what differs, is applied to its base alone, and what training with LoRA leaves
is small."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.exporting import Workshop
from torch import Tensor

from hotclip_server.artifacts.archive import unpack, write_archive
from hotclip_server.artifacts.records import ArtifactFormat, ArtifactRecord, Origin
from hotclip_server.errors import FailedPrecondition, HotclipError
from hotclip_server.models.delta import DELTA_FILE, DELTA_WEIGHTS, DeltaInfo
from hotclip_server.models.manifest import WEIGHTS_FILE


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    yield made
    made.close()


def weights(workshop: Workshop, version: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(workshop.versions.folder(version) / WEIGHTS_FILE)
    return found


def trained(workshop: Workshop, base: str, change: Callable[[str, Tensor], Tensor]) -> str:
    """A version whose weights are those of the base, changed."""
    model = workshop.versions.load(base).model
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(change(name, value))
    return workshop.versions.save_trained(model, base=base, source="job:test").id


def lora(name: str, value: Tensor) -> Tensor:
    """Rank 2 on the matrices of attention and of both projections."""
    if value.ndim != 2 or not any(part in name for part in ("in_proj", "c_fc", "c_proj")):
        return value
    generator = torch.Generator().manual_seed(len(name))
    up = torch.randn(value.shape[0], 2, generator=generator)
    return value + 0.01 * up @ torch.randn(2, value.shape[1], generator=generator)


def unpacked(workshop: Workshop, record: ArtifactRecord, folder: Path) -> Path:
    folder.mkdir()
    unpack(workshop.artifacts.path(record), folder)
    return folder


def repacked(workshop: Workshop, folder: Path) -> str:
    with workshop.artifacts.scratch() as scratch:
        files = {path.name: path for path in folder.iterdir()}
        sha256 = write_archive(scratch / "a.tar", "delta", files)
        kind = ArtifactFormat.DELTA
        return workshop.artifacts.add(scratch / "a.tar", sha256, kind, Origin()).id


def test_what_changed_comes_back_exactly(workshop: Workshop, tmp_path: Path) -> None:
    base = workshop.make("mini")
    tuned = trained(
        workshop, base, lambda name, v: v + 0.1 * torch.rand_like(v) if "ln_final" in name else v
    )
    record = workshop.export(tuned, ArtifactFormat.DELTA, base)
    whole = workshop.export(tuned)
    assert record.size_bytes < whole.size_bytes / 10
    info = DeltaInfo.read(unpacked(workshop, record, tmp_path / "delta"))
    assert (info.base_version, info.version) == (base, tuned)
    assert (info.exact, info.changed, info.low_rank) == (True, 2, 0)
    workshop.versions.delete(tuned)
    again = workshop.versions.import_source(f"artifact:{record.id}")
    assert again.id == tuned  # the same content is the same version
    assert (again.parent, again.source) == (base, f"artifact:{record.id}")


def test_lora_is_small(workshop: Workshop, tmp_path: Path) -> None:
    base = workshop.make("clip")
    tuned = trained(workshop, base, lora)
    record = workshop.export(tuned, ArtifactFormat.DELTA, base)
    info = DeltaInfo.read(unpacked(workshop, record, tmp_path / "delta"))
    assert not info.exact
    assert info.low_rank == info.changed > 8
    made = load_file(tmp_path / "delta" / DELTA_WEIGHTS)
    assert {v.shape[1] for n, v in made.items() if n.startswith("up/")} == {2}
    changed = sum(v.nbytes for n, v in weights(workshop, tuned).items() if lora(n, v) is not v)
    assert sum(v.nbytes for v in made.values()) < changed / 5
    again = workshop.versions.import_source(f"artifact:{record.id}")
    old, new = weights(workshop, tuned), weights(workshop, again.id)
    for name, value in old.items():
        torch.testing.assert_close(new[name], value, rtol=0, atol=1e-6 * float(value.abs().max()))


def test_a_full_fine_tune_is_stored_as_it_is(workshop: Workshop, tmp_path: Path) -> None:
    base = workshop.make("clip")
    torch.manual_seed(0)
    tuned = trained(workshop, base, lambda _, v: v + 0.01 * torch.randn_like(v) if v.ndim else v)
    record = workshop.export(tuned, ArtifactFormat.DELTA, base)
    info = DeltaInfo.read(unpacked(workshop, record, tmp_path / "delta"))
    assert (info.exact, info.low_rank) == (True, 0)
    workshop.versions.delete(tuned)
    assert workshop.versions.import_source(f"artifact:{record.id}").id == tuned


def test_a_delta_needs_its_base(workshop: Workshop) -> None:
    base = workshop.make("clip")
    tuned = trained(workshop, base, lora)
    record = workshop.export(tuned, ArtifactFormat.DELTA, base)
    workshop.versions.delete(base)
    with pytest.raises(FailedPrecondition) as caught:
        workshop.versions.import_source(f"artifact:{record.id}")
    assert caught.value.reason == "BASE_VERSION_MISSING"
    assert caught.value.metadata == {"base_version": base}


def test_versions_of_two_architectures_have_no_delta(workshop: Workshop) -> None:
    clip, mini = workshop.make("clip"), workshop.make("mini")
    with pytest.raises(FailedPrecondition) as caught:
        workshop.export(clip, ArtifactFormat.DELTA, mini)
    assert caught.value.reason == "ARCHITECTURES_DIFFER"


def test_forged_deltas_are_refused_before_they_are_read(workshop: Workshop, tmp_path: Path) -> None:
    base = workshop.make("clip")
    tuned = trained(workshop, base, lora)
    folder = unpacked(workshop, workshop.export(tuned, ArtifactFormat.DELTA, base), tmp_path / "d")
    good = load_file(folder / DELTA_WEIGHTS)
    name = next(n for n in good if n.startswith("up/")).removeprefix("up/")
    up, down = good[f"up/{name}"], good[f"down/{name}"]
    info = json.loads((folder / DELTA_FILE).read_text())
    forged: dict[str, dict[str, Tensor]] = {
        "unknown": {**good, "full/nothing": torch.zeros(2)},
        "kind": {**good, f"other/{name}": up.clone()},
        "shape": {"full/logit_scale": torch.zeros(3)},
        "alone": {f"up/{name}": up},
        "wide": {f"up/{name}": up.repeat(1, 40), f"down/{name}": down.repeat(40, 1)},
        "unfit": {f"up/{name}": up, f"down/{name}": down[:, 1:].contiguous()},
        "both": {**good, f"full/{name}": weights(workshop, tuned)[name]},
        "nan": {"full/logit_scale": torch.tensor(float("nan"))},
    }
    for content in forged.values():
        save_file(content, folder / DELTA_WEIGHTS)
        with pytest.raises(FailedPrecondition) as caught:
            workshop.versions.import_source(f"artifact:{repacked(workshop, folder)}")
        assert caught.value.reason == "VERSION_UNFIT"
    (folder / DELTA_WEIGHTS).write_bytes(b"noise")
    with pytest.raises(HotclipError):
        workshop.versions.import_source(f"artifact:{repacked(workshop, folder)}")
    for change in ({"base_version": "../../x"}, {"format": 2}, {"more": 1}):
        (folder / DELTA_FILE).write_text(json.dumps({**info, **change}))
        with pytest.raises(FailedPrecondition):
            workshop.versions.import_source(f"artifact:{repacked(workshop, folder)}")
