"""What a source may be, and that each failure has its own error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub import LoopbackHub
from support.small_models import write_model

from hotclip_server.errors import (
    FailedPrecondition,
    HotclipError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from hotclip_server.models.store import VersionStore


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    write_model(tmp_path / "models" / "small")
    write_model(tmp_path / "elsewhere")
    (tmp_path / "models" / "link").symlink_to(tmp_path / "elsewhere")
    return VersionStore(tmp_path / "versions", models_dir=tmp_path / "models")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "small",
        "/etc/passwd",
        "local:",
        "local:..",
        "local:../elsewhere",
        "local:small/..",
        "local:/etc",
        "local:.hidden",
        "hf-hub:",
        "hf-hub:../..",
        "hf-hub:one/two/three",
        "hf-hub:/etc/passwd",
        "ViT-B-32",
        "ViT-B-32::",
    ],
)
def test_sources_that_are_none(store: VersionStore, source: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        store.import_source(source)
    assert caught.value.reason == "SOURCE_INVALID"
    assert caught.value.violations[0].field == "source"


@pytest.mark.parametrize(
    "source",
    [
        "builtin:nothing",
        "builtin:..",
        "local:nothing",
        "local:link",
        "ViT-B-33::openai",
        "ViT-B-32::nothing",
        "../ViT-B-32::openai",
    ],
)
def test_sources_that_are_not_there(store: VersionStore, source: str) -> None:
    with pytest.raises(NotFound):
        store.import_source(source)


def test_no_folder_of_local_models(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        VersionStore(tmp_path).import_source("local:small")


def unfit(store: VersionStore, source: str = "local:small") -> HotclipError:
    with pytest.raises(FailedPrecondition) as caught:
        store.import_source(source)
    assert caught.value.reason == "VERSION_UNFIT"
    return caught.value


def test_pickles_are_not_read(store: VersionStore, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "small"
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    assert "pickled" in unfit(store).message


@pytest.mark.parametrize("name", ["open_clip_config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file(store: VersionStore, tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "models" / "mini", "mini")
    (folder / name).unlink()
    unfit(store, "local:mini")


def deepen(folder: Path) -> None:
    """Has the config of a model ask for more layers than any model has: of a million of them
    building alone would not end."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["layers"] = 300
    path.write_text(json.dumps(config))


def test_a_config_of_absurd_size_is_refused_before_anything_is_built(
    store: VersionStore, tmp_path: Path
) -> None:
    deepen(tmp_path / "models" / "small")
    assert "layers is 300, at most 256" in unfit(store).message


def test_weights_of_another_model(store: VersionStore, tmp_path: Path) -> None:
    other = write_model(tmp_path / "models" / "other", "resnet")
    (other / "open_clip_model.safetensors").replace(
        tmp_path / "models" / "small" / "open_clip_model.safetensors"
    )
    unfit(store)


def test_damaged_weights(store: VersionStore, tmp_path: Path) -> None:
    path = tmp_path / "models" / "small" / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    unfit(store)


def test_a_failed_import_leaves_nothing(store: VersionStore, tmp_path: Path) -> None:
    path = tmp_path / "models" / "small" / "open_clip_model.safetensors"
    path.write_bytes(b"")
    unfit(store)
    versions = tmp_path / "versions"
    assert not versions.exists() or not list(versions.iterdir())


IMPORT = """
import json, sys
from pathlib import Path
from hotclip_server.errors import HotclipError
from hotclip_server.models.store import VersionStore
store = VersionStore(Path(sys.argv[1]))
for source in sys.argv[2:]:
    try:
        answer = ["version", store.import_source(source).id]
    except HotclipError as error:
        answer = [type(error).__name__, error.message]
    print("ANSWER", json.dumps(answer))
"""


def imported(root: Path, environment: dict[str, str], *sources: str) -> list[list[str]]:
    """What becomes of each source in a process that uses the hub of `environment`."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(root), *sources],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    return [json.loads(line.removeprefix("ANSWER ")) for line in lines]


@pytest.mark.slow
def test_a_hub(store: VersionStore, tmp_path: Path) -> None:
    root = tmp_path / "hub"
    write_model(root / "org" / "good")
    pickled = write_model(root / "org" / "pickled", seed=1)
    (pickled / "open_clip_model.safetensors").rename(pickled / "open_clip_pytorch_model.bin")
    (root / "org" / "empty").mkdir()
    deepen(write_model(root / "org" / "deep"))
    with LoopbackHub(root) as hub:
        environment = hub.environment(tmp_path / "cache")
        good, unread, empty, missing, lacking, deep = imported(
            tmp_path / "imported",
            environment,
            "hf-hub:org/good",
            "hf-hub:org/pickled",
            "hf-hub:org/empty",
            "hf-hub:org/missing",
            "ViT-B-32::openai",
            "hf-hub:org/deep",
        )
        fetched = [path for path in hub.requests if path.endswith((".bin", ".pt", ".pth"))]
    assert unread[0] == "FailedPrecondition"
    assert not fetched
    assert "layers is 300, at most 256" in deep[1]
    assert [empty[0], missing[0], lacking[0]] == ["NotFound"] * 3
    version = VersionStore(tmp_path / "imported").read_manifest(good[1])
    assert version.source == "hf-hub:org/good"
    local = VersionStore(tmp_path / "again", models_dir=root / "org").import_source("local:good")
    assert local.id == version.id
    silent = imported(tmp_path / "imported", hub.environment(tmp_path / "other"), "hf-hub:org/good")
    assert silent[0][0] == "Unavailable"


def test_what_does_not_fit_into_memory_is_not_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models" / "small")
    asked: list[int] = []

    def require(size_bytes: int, what: str) -> None:
        asked.append(size_bytes)
        raise ResourceExhausted("full", reason="OUT_OF_MEMORY")

    weights = folder / "open_clip_model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(b"\0" * size)  # which nobody gets to see
    store = VersionStore(
        tmp_path / "versions", models_dir=tmp_path / "models", require_memory=require
    )
    with pytest.raises(ResourceExhausted) as caught:
        store.import_source("local:small")
    assert (caught.value.reason, asked) == ("OUT_OF_MEMORY", [size])
    assert not (tmp_path / "versions").exists()


def test_half_precision_takes_twice_its_size(tmp_path: Path) -> None:
    for half in (False, True):
        write_model(tmp_path / "models" / f"half-{half}", half=half)
    asked: list[int] = []
    store = VersionStore(
        tmp_path / "versions",
        models_dir=tmp_path / "models",
        require_memory=lambda size_bytes, what: asked.append(size_bytes),
    )
    made = {store.import_source(f"local:half-{half}").size_bytes for half in (False, True)}
    assert len(set(asked)) == 1
    assert max(made) == pytest.approx(asked[0], rel=0.05)
