"""Each tracker's own reader finds what it was told."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotclip_server.config import ServerConfig
from hotclip_server.errors import FailedPrecondition
from hotclip_server.trackers.known import CLASSES, is_installed, require_installed, tracker_maker
from hotclip_server.trackers.protocol import TrackedRun

RUN = TrackedRun(
    id="job-1",
    name="first",
    model="default",
    description="a <b>run</b>",
    settings={"config.epochs": "3", "base_version": "ver-1"},
)


def told(name: str, config: ServerConfig) -> None:
    """A run, and the same run going on in another process."""
    for loss in (2.0, 1.0):
        tracker = tracker_maker(config)(name, RUN)
        tracker.metrics({"train/loss": loss, "train/odd@name": 1.0}, step=int(3 - loss), time=1e9)
        tracker.metrics({"epoch/monitor": loss / 10}, step=2, time=1e9 + 1)
        tracker.metrics({"train/loss": math.nan}, step=3, time=1e9 + 2)
        tracker.close("INTERRUPTED" if loss == 2.0 else "SUCCEEDED")


def records(file: bytes) -> Iterator[bytes]:
    """Of a short file of W&B: LevelDB's log format after a header of 7 bytes."""
    place = 7
    while place < len(file):
        length, kind = struct.unpack_from("<HB", file, place + 4)
        assert kind == 1  # a whole record
        yield file[place + 7 : place + 7 + length]
        place += 7 + length


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told("tensorboard", ServerConfig(data_dir=tmp_path))
    found = EventAccumulator(str(tmp_path / "trackers" / "tensorboard" / "first-job-1"))
    found.Reload()
    losses = found.Scalars("train/loss")
    assert [(event.step, event.value) for event in losses if event.step < 3] == [(1, 2), (2, 1)]
    assert losses[0].wall_time == 1e9
    assert [event.value for event in found.Scalars("epoch/monitor")] == pytest.approx([0.2, 0.1])
    text = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "config.epochs" in text


@pytest.mark.filterwarnings("default")  # its own
def test_wandb_offline(tmp_path: Path) -> None:
    import wandb
    from wandb.proto import wandb_internal_pb2

    told("wandb", ServerConfig(data_dir=tmp_path, trackers_dir=tmp_path / "mine"))
    wandb.teardown()  # a process of its own writes the files, and may not be done yet
    history: list[dict[str, str]] = []
    for file in sorted((tmp_path / "mine" / "wandb").glob("offline-run-*/run-job-1.wandb")):
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            row = record.history.item
            history.append({i.key or "/".join(i.nested_key): i.value_json for i in row})
    losses = {r["train/step"]: r["train/loss"] for r in history if "train/loss" in r}
    assert {float(losses["1"]), float(losses["2"])} == {2.0, 1.0}


@pytest.mark.filterwarnings("default")  # its own
def test_mlflow(tmp_path: Path) -> None:
    import mlflow

    told("mlflow", ServerConfig(data_dir=tmp_path))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'trackers' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("hotclip")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    assert run.data.params["config.epochs"] == "3"
    assert run.data.tags["mlflow.note.content"] == "a <b>run</b>"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in losses if m.step < 3] == [(1, 2.0), (2, 1.0)]
    assert "train/odd_name" in run.data.metrics


def test_what_is_not_installed_is_said_before_anything_starts() -> None:
    require_installed(["tensorboard"])
    with pytest.raises(FailedPrecondition, match=r"pip install 'hotclip\[wandb\]'") as caught:
        require_installed(["tensorboard", "wandb"], installed=lambda name: name != "wandb")
    assert caught.value.reason == "TRACKER_NOT_INSTALLED"
    assert set(map(is_installed, CLASSES)) <= {True, False}
