"""States on disk: the newest whole one counts, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from hotclip_server.errors import ResourceExhausted
from hotclip_server.training.checkpoints import Checkpoints
from hotclip_server.training.events import Step
from hotclip_server.training.progress import Snapshot
from hotclip_server.training.trainer import Trainer
from tests.unit.training.test_finetune_job import CONFIG
from tests.unit.training.tiny import colours, tiny_clip


def snapshots(count: int) -> Iterator[Snapshot]:
    trainer = Trainer(tiny_clip(), colours(12), CONFIG)
    for event in trainer.run():
        if isinstance(event, Step) and event.step <= count:
            yield trainer.snapshot()


def test_the_newest_whole_state_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.load() is None
    names = []
    for number, snapshot in enumerate(snapshots(4), 1):
        names.append(checkpoints.save_weights(dict(snapshot.weights)))
        checkpoints.save(snapshot, {"number": number}, {names[-1]})
    assert sorted(p.name for p in tmp_path.glob("state-*")) == ["state-000003", "state-000004"]
    # Weights that a kept state names are kept with it.
    assert sorted(p.name for p in tmp_path.glob("weights-*")) == names[2:]
    stored = checkpoints.load()
    assert stored is not None
    assert (stored.snapshot.progress.step, stored.notes["number"]) == (4, 4)
    assert stored.threads == torch.get_num_threads()
    damaged = tmp_path / "state-000004" / "state.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    older = checkpoints.load()
    assert older is not None
    assert older.snapshot.progress.step == 3
    # It gives its place to the next one, and what is whole stays.
    checkpoints.save(older.snapshot, {}, ())
    assert sorted(p.name for p in tmp_path.glob("state-*")) == ["state-000003", "state-000005"]


def test_a_damaged_manifest_is_found_and_holds_nothing_up(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number, snapshot in enumerate(snapshots(2), 1):
        name = checkpoints.save_weights(dict(snapshot.weights))
        checkpoints.save(snapshot, {"number": number}, {name})
    manifest = tmp_path / "state-000002" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"step": 2', '"step": 3'))
    assert manifest.read_text() != text
    stored = Checkpoints(tmp_path, keep=2).load()
    assert stored is not None
    assert (stored.snapshot.progress.step, stored.notes["number"]) == (1, 1)
    manifest.write_text(text[: len(text) // 2])
    checkpoints.save(stored.snapshot, {}, ())
    assert sorted(p.name for p in tmp_path.glob("state-*")) == ["state-000002", "state-000003"]


def test_a_full_disk_leaves_the_states_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    first, second = (copied for copied in snapshots(2))
    checkpoints.save(first, {}, ())

    def full(*_: object, **__: object) -> None:  # as safetensors says it
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("hotclip_server.encoding.weights.save_file", full)
    with pytest.raises(ResourceExhausted) as caught:
        checkpoints.save(second, {}, ())
    assert caught.value.reason == "DISK_FULL"
    assert [path.name for path in tmp_path.iterdir()] == ["state-000001"]
