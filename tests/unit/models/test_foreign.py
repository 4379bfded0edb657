"""Models from elsewhere: what they may not ask for is refused before it is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.exporting import Workshop
from support.small_models import write_model

from hotclip_server.artifacts.archive import write_archive
from hotclip_server.artifacts.records import ArtifactFormat, Origin
from hotclip_server.errors import FailedPrecondition, HotclipError, NotFound
from hotclip_server.models.foreign import check_sizes

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    yield made
    made.close()


def source(workshop: Workshop, folder: Path) -> str:
    with workshop.artifacts.scratch() as scratch:
        files = {path.name: path for path in folder.iterdir()}
        sha256 = write_archive(scratch / "a.tar", "m", files)
        kind = ArtifactFormat.OPEN_CLIP
        return "artifact:" + workshop.artifacts.add(scratch / "a.tar", sha256, kind, Origin()).id


def test_the_same_folder_is_the_same_version(workshop: Workshop, tmp_path: Path) -> None:
    for kind in ("clip", "mini", "siglip"):
        version = workshop.make(kind)
        folder = write_model(tmp_path / "sent" / kind, kind)
        assert workshop.versions.import_source(source(workshop, folder)).id == version
    with pytest.raises(NotFound):
        workshop.versions.import_source("artifact:art-0")


def test_a_multilingual_model_asks_no_hub(workshop: Workshop, tmp_path: Path) -> None:
    version = workshop.make("xlm-roberta")
    folder = shutil.copytree(workshop.models / "xlm-roberta", tmp_path / "sent")
    # Published files have this buffer, which open_clip drops.
    state = load_file(folder / WEIGHTS)
    state["text.transformer.embeddings.position_ids"] = torch.arange(514)[None]
    save_file(state, folder / WEIGHTS)
    assert workshop.versions.import_source(source(workshop, folder)).id == version
    (folder / "config.json").unlink()
    with pytest.raises(FailedPrecondition, match=r"config\.json"):
        workshop.versions.import_source(source(workshop, folder))


def test_other_weights_are_refused_by_their_header(workshop: Workshop, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "sent", "clip")
    state = load_file(folder / WEIGHTS)
    name = "visual.conv1.weight"
    for changed in (
        {**state, "more": torch.zeros(1)},
        {n: v for n, v in state.items() if n != name},
        {**state, name: torch.zeros(1, 2)},
        {**state, name: torch.full_like(state[name], torch.inf)},
    ):
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(FailedPrecondition) as caught:
            workshop.versions.import_source(source(workshop, folder))
        assert caught.value.reason == "VERSION_UNFIT"
    (folder / WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(HotclipError):
        workshop.versions.import_source(source(workshop, folder))
    (folder / WEIGHTS).unlink()
    with pytest.raises(FailedPrecondition, match="pickled"):
        workshop.versions.import_source(source(workshop, folder))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("text_cfg", "layers"), 100_000),
        (("text_cfg", "vocab_size"), 10**9),
        (("vision_cfg", "width"), 10**6),
        (("vision_cfg", "image_size"), 10**6),
        (("vision_cfg", "layers"), [2, 2, 10**5]),
        (("vision_cfg", "mlp_ratio"), float("inf")),
    ],
)
def test_towers_of_absurd_sizes_are_refused(
    tmp_path: Path, place: tuple[str, str], value: object
) -> None:
    folder = write_model(tmp_path / "sent", "clip")
    check_sizes(folder)
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"][place[0]][place[1]] = value
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(FailedPrecondition, match=place[1]):
        check_sizes(folder)
    (folder / CONFIG).write_text("[" * 100_000)
    with pytest.raises(FailedPrecondition):
        check_sizes(folder)
