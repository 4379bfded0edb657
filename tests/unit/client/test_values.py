"""Images, arrays, events, filters and the progress bar, without a network."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as Pil

from hotclip import Between, Embeddings, Filter, Match
from hotclip._channel import RETRIED, Settings
from hotclip._events import EventCursor
from hotclip._fetch import fetch
from hotclip._filters import filter_of
from hotclip._finetuning import activation_of, loss_of
from hotclip._inputs import png
from hotclip._jobs import JobEvent, JobState, Measurement, StateChange
from hotclip._progress import ProgressBar
from hotclip._reconnect import Attempts
from hotclip.errors import DataLoss, InvalidArgument, NotFound, Unavailable
from hotclip_proto.v1 import finetune_pb2, job_pb2


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_png_is_lossless(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(Pil.open(io.BytesIO(png(pixels)))), pixels)


def test_embeddings_know_their_version_until_they_are_computed_with() -> None:
    rows = Embeddings(np.eye(3, dtype=np.float32), version="v", space_id="s")
    assert rows[0].version == rows[1:].copy().version == "v"
    for computed in (rows + rows, rows @ rows.T, rows * 2):
        assert type(computed) is np.ndarray
    assert float(rows.sum()) == 3.0
    make, arguments, state = rows.__reduce__()  # as multiprocessing sends it
    again = make(*arguments)
    again.__setstate__(state)
    assert (again.version, again.space_id) == ("v", "s")
    np.testing.assert_array_equal(again, rows)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/y", "data:,x", "nothing", "http://["]
)
def test_only_the_web_is_fetched(url: str) -> None:
    with pytest.raises(InvalidArgument):
        fetch(url, max_bytes=10, timeout=1)


def state(seq: int, at: job_pb2.JobState.ValueType) -> job_pb2.JobEvent:
    return job_pb2.JobEvent(seq=seq, state=job_pb2.StateEvent(state=at))


def test_events_come_once_and_gaps_are_noticed() -> None:
    cursor = EventCursor("j", 2)
    assert cursor.accept(state(2, job_pb2.JOB_STATE_QUEUED)) is None
    assert cursor.accept(state(3, job_pb2.JOB_STATE_RUNNING)) is not None
    assert cursor.request().after_seq == 3
    assert cursor.finished() is not None  # the server went away: connect again
    assert cursor.broken(Unavailable("x")) > 0
    assert cursor.accept(state(4, job_pb2.JOB_STATE_SUCCEEDED)) is not None
    assert cursor.finished() is None
    with pytest.raises(DataLoss):
        cursor.accept(state(6, job_pb2.JOB_STATE_SUCCEEDED))
    with pytest.raises(NotFound):
        cursor.broken(NotFound("x"))


def test_attempts_end_and_progress_starts_them_again() -> None:
    attempts = Attempts(most=2)
    assert attempts.pause(Unavailable("x")) < attempts.pause(Unavailable("x", retry_after=3)) == 3
    with pytest.raises(Unavailable):
        attempts.pause(Unavailable("x"))
    attempts.progressed()
    assert attempts.pause(Unavailable("x")) > 0


def test_names_of_losses_and_activations() -> None:
    for name in ("CLIPLoss", "InfoNCE", "info_nce", "clip"):
        assert loss_of(name) == (finetune_pb2.LOSS_INFO_NCE, "")
    assert loss_of("triplet-margin-loss") == (finetune_pb2.LOSS_METRIC, "TripletMarginLoss")
    assert loss_of("SigLipLoss") == (finetune_pb2.LOSS_SIGLIP, "")
    assert activation_of("IF_BETTER") == finetune_pb2.ACTIVATION_IF_BETTER
    with pytest.raises(InvalidArgument, match="TripletLoss"):
        loss_of("TripletLoss")


def test_filters() -> None:
    packed = filter_of({"lang": "de", "n": 3, "ok": True, "tag": ["a", "b"]})
    assert packed is not None
    assert [c.WhichOneof("test") for c in packed.must] == [
        "equals_string",
        "equals_int",
        "equals_bool",
        "any_of",
    ]
    ranged = filter_of(Filter(should=[Between("n", gte=1.0)], must_not=[Match("x", "y")]))
    assert ranged is not None
    assert ranged.should[0].range.gte == 1.0
    assert not ranged.should[0].range.HasField("lt")
    with pytest.raises(InvalidArgument, match=r"must\[0\]"):
        filter_of({"n": 1.5})  # type: ignore[dict-item]  # what is tested


def test_targets_and_timeouts() -> None:
    def settings(address: str, timeout: float = 1.0) -> Settings:
        return Settings(
            address=address, timeout=timeout, wait_for_ready=False, retries=True, credentials=None
        )

    assert settings("host:1").target == "dns:///host:1"
    assert settings("unix:/x").target == "unix:/x"
    for bad in (("", 1.0), ("h:1", 0.0), ("h:1", float("nan"))):
        with pytest.raises(InvalidArgument):
            settings(*bad)


def test_only_calls_that_may_run_twice_are_retried() -> None:
    retried = {method for methods in RETRIED.values() for method in methods}
    writing = {"UnloadVersion", "Upsert", "Delete", "DeleteVersion", "CancelJob"}
    assert not retried & writing
    assert "Encode" in retried


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_bar(stream: io.StringIO) -> None:
    now = [0.0]
    bar = ProgressBar("run", stream=stream, clock=lambda: now[0])
    bar.show(JobEvent(1, None, StateChange(JobState.RUNNING, "")))
    for step in range(1, 11):
        now[0] += 0.5
        bar.show(JobEvent(step + 1, None, Measurement("STEP", step, 10, 0, {"loss": 1 / step})))
    bar.close()
    written = stream.getvalue()
    assert "run RUNNING" in written
    assert "100% 10/10  loss 0.1000  2.0 steps/s" in written
    assert ("\r" in written) == stream.isatty()


def test_a_bar_never_wraps() -> None:
    stream = Terminal()
    bar = ProgressBar("n" * 60, stream=stream)
    bar.show(JobEvent(1, None, Measurement("STEP", 5, 10, 0, {"loss": 0.5})))
    assert {len(line) for line in stream.getvalue().split("\r\x1b[2K")} == {0, 79}


def test_a_bar_gives_way_to_the_numbers() -> None:
    stream = Terminal()
    bar = ProgressBar("job-0123456789abcdef", stream=stream)
    metrics = {"loss": 0.5, "samples_per_second": 1234.0}
    bar.show(JobEvent(1, None, Measurement("STEP", 500, 10000, 0, metrics)))
    assert stream.getvalue().endswith("5% 500/10000  loss 0.5000  1234 pairs/s")


def test_a_bar_of_old_events_tells_the_speed_of_then() -> None:
    stream = Terminal()
    bar = ProgressBar("run", stream=stream, clock=lambda: 7.0)
    for step in range(1, 12):
        time = datetime(2026, 1, 1, 0, 0, step, tzinfo=UTC)
        bar.show(JobEvent(step, time, Measurement("STEP", step, 11, 0, {})))
    bar.close()
    assert "11/11  1.0 steps/s" in stream.getvalue()


def test_a_bar_tells_what_is_left_also_after_a_resume() -> None:
    stream = io.StringIO()
    bar = ProgressBar("run", stream=stream)
    for seconds, step in enumerate((100, 110, 50, 60)):
        time = datetime(2026, 1, 1, 0, 0, seconds, tzinfo=UTC)
        bar.show(JobEvent(1, time, Measurement("STEP", step, 1000, 0, {})))
    bar.close()
    assert "60/1000  10.0 steps/s  1:34 left" in stream.getvalue()


def test_a_bar_tells_in_short_what_was_measured() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    bar = ProgressBar("run", stream=stream)
    metrics = {"clip-text-to-clip-vision_reciprocal_rank": 0.25, "validation_loss": 1.5}
    bar.show(JobEvent(1, None, Measurement("STEP", 1, 2, 0, {})))
    bar.show(JobEvent(2, None, Measurement("EPOCH", 1, 2, 2, metrics)))
    bar.show(JobEvent(3, None, Measurement("ALPHA", 1, 2, 0, {"alpha": 0.5, **metrics})))
    bar.show(JobEvent(4, None, StateChange(JobState.FAILED, "red\x1b[31m\nalert")))
    bar.close()
    written = stream.buffer.getvalue().decode("ascii")
    assert written.splitlines() == [
        f"run {'#' * 14}{'.' * 14}  50% 1/2",
        "run epoch 3  mRR text?image 0.2500  held-out loss 1.5000",
        "run alpha 0.5  mRR text?image 0.2500  held-out loss 1.5000",
        "run FAILED: red [31m alert",
    ]
