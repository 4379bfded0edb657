"""Fine-tunes over gRPC: a real server process, the built-in model, drawn pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.drawings import drawn_pairs, key_of
from support.learning import Stubs
from support.server import ServerProcess, start_server

import hotclip
from hotclip_proto.v1 import dataset_pb2, finetune_pb2, job_pb2, model_pb2

Request = finetune_pb2.FineTuneRequest
MONITOR = "monitor"
TRAINER = "hotclip_server.training.child"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Its own server: these tests change the live version."""
    folder = tmp_path_factory.mktemp("learning") / "data"
    with start_server(folder, "--device", "cpu") as running:
        yield running


@pytest.fixture(scope="module")
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs(channel)
        stubs.upload("shapes", drawn_pairs())
        yield stubs


def tune(**changes: object) -> Request:
    """Some steps that clearly change the weights."""
    values: dict[str, object] = {
        "train_dataset": "shapes",
        "val_split": 0.25,
        "max_steps": 12,
        "batch_size": 8,
        "method": finetune_pb2.METHOD_FULL,
        "learning_rate": 1e-3,
        "activation": finetune_pb2.ACTIVATION_NEVER,
    }
    return Request(**{**values, **changes})


def weights(server: ServerProcess, version: str) -> str:
    file = server.data_dir / "versions" / version / "open_clip_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_watch_that_reconnects_sees_it_all_and_a_version_is_staged(
    stubs: Stubs, server: ServerProcess
) -> None:
    live = stubs.live()
    before = weights(server, live)
    job = stubs.tuning.FineTune(tune(name="first", description="shapes"))
    assert (job.name, job.state) == ("first", job_pb2.JOB_STATE_QUEUED)
    events: list[job_pb2.JobEvent] = []
    while not events or events[-1].state.state != job_pb2.JOB_STATE_SUCCEEDED:
        after = events[-1].seq if events else 0
        stream = stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job="first", after_seq=after))
        for event in stream:
            events.append(event)
            if len(events) % 4 == 0:
                stream.cancel()  # the connection is lost again and again
                break
        assert events[-1].state.state != job_pb2.JOB_STATE_FAILED, events[-1].state.message
    assert [event.seq for event in events] == list(range(1, len(events) + 1))

    metrics = [event.metric for event in events if event.HasField("metric")]
    stages = [metric.stage for metric in metrics]
    assert stages[0] == job_pb2.MetricEvent.STAGE_BEFORE
    assert stages[-1] == job_pb2.MetricEvent.STAGE_AFTER
    assert job_pb2.MetricEvent.STAGE_EPOCH in stages
    steps = [m for m in metrics if m.stage == job_pb2.MetricEvent.STAGE_STEP]
    assert (steps[-1].step, steps[-1].total_steps) == (12, 12)
    names = {metric.name for metric in steps[-1].metrics}
    assert {"loss", "learning_rate", "logit_scale", "grad_norm", "samples_per_second"} <= names
    assert {"data_wait_s", "yielded_share", "skipped_steps"} <= names
    held_out = [{m.name for m in metric.metrics} for metric in metrics if metric not in steps]
    assert all({MONITOR, "validation_loss"} <= measured for measured in held_out)
    keys = {key_of(image) for image, _ in drawn_pairs()}
    examples = [event.example for event in events if event.HasField("example")]
    assert examples
    assert all({*e.before, *e.after, *e.relevant} <= keys and e.relevant for e in examples)

    ended = stubs.jobs.GetJob(job_pb2.GetJobRequest(job="first"))
    assert ended.progress == 1
    assert not ended.activated
    assert ended.result_version not in ("", live)
    assert stubs.live() == live
    assert weights(server, live) == before
    best = {metric.name: metric.value for metric in ended.metrics}
    epochs = [
        m.value
        for metric in metrics
        if metric.stage == job_pb2.MetricEvent.STAGE_EPOCH
        for m in metric.metrics
        if m.name == MONITOR
    ]
    assert best[MONITOR] == max(epochs)

    evaluation = stubs.tuning.Evaluate(
        finetune_pb2.EvaluateRequest(version=ended.result_version, dataset="shapes", k=3)
    )
    measured = stubs.wait(evaluation.id)
    assert measured.state == job_pb2.JOB_STATE_SUCCEEDED
    found = {metric.name: metric.value for metric in measured.metrics}
    assert 0 < found["clip-text-to-clip-vision_reciprocal_rank"] <= 1
    assert found["clip-vision-to-clip-text_queries"] == 32

    made = stubs.models.GetVersion(model_pb2.GetVersionRequest(version=ended.result_version))
    assert (made.parent, made.lineage.job) == (live, ended.id)
    assert set(made.lineage.datasets) == {"train"}
    assert made.lineage.config["config"]["learning_rate"] == 1e-3
    assert ended.config["train_dataset"] == made.lineage.datasets["train"]
    name = "clip-text-to-clip-vision_reciprocal_rank"
    gate = model_pb2.MetricGate(metric=name, dataset="shapes", at_least=found[name])
    trial = model_pb2.ActivateVersionRequest(version=made.id, validate_only=True, gates=[gate])
    assert stubs.models.ActivateVersion(trial).live_version == live
    trial.gates[0].live_margin = 0.0  # the live version was not measured there
    with pytest.raises(grpc.RpcError) as refused:
        stubs.models.ActivateVersion(trial)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_activation_modes(stubs: Stubs) -> None:
    base = stubs.live()
    # Trained and measured on the same pairs, it must get better.
    better = stubs.tuning.FineTune(
        tune(
            eval_dataset="shapes",
            val_split=None,
            max_steps=40,
            activation=finetune_pb2.ACTIVATION_IF_BETTER,
            seed=1,
        )
    )
    ended = stubs.wait(better.id)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended.error
    assert ended.activated
    assert stubs.live() == ended.result_version != base

    # Against the live version, not against its base, it is not better.
    worse = stubs.tuning.FineTune(
        tune(
            base_version=base,
            eval_dataset="shapes",
            val_split=None,
            max_steps=1,
            learning_rate=1e-7,
            activation=finetune_pb2.ACTIVATION_IF_BETTER,
        )
    )
    left = stubs.wait(worse.id)
    assert left.state == job_pb2.JOB_STATE_SUCCEEDED, left.error
    assert not left.activated
    assert stubs.live() == ended.result_version

    blind = stubs.tuning.FineTune(
        tune(val_split=0.0, max_steps=1, activation=finetune_pb2.ACTIVATION_IF_BETTER)
    )
    staged = stubs.wait(blind.id)
    assert staged.state == job_pb2.JOB_STATE_SUCCEEDED, staged.error
    assert not staged.activated

    always = stubs.tuning.FineTune(
        tune(val_split=0.0, max_steps=2, activation=finetune_pb2.ACTIVATION_ALWAYS)
    )
    forced = stubs.wait(always.id)
    assert forced.activated
    assert stubs.live() == forced.result_version


def test_cancel_in_the_middle_stages_nothing(stubs: Stubs, server: ServerProcess) -> None:
    versions = sorted((server.data_dir / "versions").iterdir())
    job = stubs.tuning.FineTune(tune(max_steps=100_000))
    with pytest.raises(grpc.RpcError) as in_use:
        stubs.datasets.DeleteDataset(dataset_pb2.DeleteDatasetRequest(dataset="shapes"))
    assert in_use.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    for event in stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job=job.id), timeout=200):
        if event.metric.stage == job_pb2.MetricEvent.STAGE_STEP:
            break
    asked = stubs.jobs.CancelJob(job_pb2.CancelJobRequest(job=job.id))
    assert asked.state == job_pb2.JOB_STATE_CANCELLING
    assert stubs.wait(job.id).state == job_pb2.JOB_STATE_CANCELLED
    assert sorted((server.data_dir / "versions").iterdir()) == versions
    listed = stubs.jobs.ListJobs(
        job_pb2.ListJobsRequest(kind=job_pb2.JOB_KIND_FINE_TUNE, page_size=1)
    )
    assert [found.id for found in listed.jobs] == [job.id]
    assert listed.next_page_token
    stubs.jobs.DeleteJob(job_pb2.DeleteJobRequest(job=job.id))
    with pytest.raises(grpc.RpcError) as gone:
        stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job=job.id)).next()
    assert gone.value.code() is grpc.StatusCode.NOT_FOUND


def test_bad_requests_name_every_field(stubs: Stubs) -> None:
    request = tune(
        name="no spaces allowed",
        description="x" * 5000,
        train_dataset="",
        val_split=0.9,
        max_steps=None,
        epochs=0,
        batch_size=1,
        learning_rate=-1.0,
        warmup=1.0,
        weight_decay=-1.0,
        clip_norm=0.0,
        ema=1.5,
        lock_image=True,
        lock_text=True,
        scheduler=77,
    )
    with pytest.raises(grpc.RpcError) as refused:
        stubs.tuning.FineTune(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in rpc_status.from_call(refused.value).details)
    assert sorted(violation.field for violation in bad.field_violations) == [
        *("batch_size", "clip_norm", "description", "ema", "epochs", "learning_rate", "lock_text"),
        *("name", "scheduler", "train_dataset", "val_split", "warmup", "weight_decay"),
    ]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"train_dataset": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ({"index_dataset": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ({"replay_dataset": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ({"query_dataset": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ({"eval_dataset": "nobody", "val_split": None}, grpc.StatusCode.NOT_FOUND),
        ({"eval_dataset": "shapes"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ({"base_version": "0" * 16}, grpc.StatusCode.NOT_FOUND),
        ({"request_id": "x" * 129}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_unknown_names(stubs: Stubs, changes: dict[str, str], code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stubs.tuning.FineTune(tune(**changes))
    assert refused.value.code() is code


@pytest.mark.parametrize(
    ("changes", "code", "first"),
    [
        ({"prompts": ["a photo of a {}."] * 256}, grpc.StatusCode.INVALID_ARGUMENT, "prompts[0]"),
        ({"train_dataset": "ä" * 100_000}, grpc.StatusCode.NOT_FOUND, ""),
        ({"trackers": ["ö" * 3000] * 9}, grpc.StatusCode.INVALID_ARGUMENT, "trackers[0]"),
    ],
)
def test_however_much_is_wrong_the_caller_hears_of_it(
    stubs: Stubs, changes: dict[str, object], code: grpc.StatusCode, first: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stubs.tuning.FineTune(tune(**changes))
    assert refused.value.code() is code
    assert len(str(refused.value.details()).encode()) <= 1024
    bad = error_details_pb2.BadRequest()
    named = any(detail.Unpack(bad) for detail in rpc_status.from_call(refused.value).details)
    assert named == bool(first)
    assert [violation.field for violation in bad.field_violations[:1]] == [first] * named


def test_too_few_images_are_refused_before_a_job_is_made(stubs: Stubs) -> None:
    stubs.upload("two", drawn_pairs()[:2])
    with pytest.raises(grpc.RpcError, match="3 at least, of which val_split holds one out"):
        stubs.tuning.FineTune(tune(train_dataset="two"))
    fits = tune(train_dataset="two", val_split=0.0, validate_only=True)
    assert stubs.tuning.FineTune(fits).id == ""
    measured = tune(train_dataset="two", eval_dataset="shapes", val_split=None, validate_only=True)
    assert stubs.tuning.FineTune(measured).id == ""


def test_validate_only_and_request_id(stubs: Stubs) -> None:
    checked = stubs.tuning.FineTune(tune(name="checked", validate_only=True))
    assert (checked.id, checked.name) == ("", "checked")
    assert checked.config["config"]["learning_rate"] == 1e-3
    with pytest.raises(grpc.RpcError) as unknown:
        stubs.jobs.GetJob(job_pb2.GetJobRequest(job="checked"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    request = tune(name="once", request_id="r1", max_steps=1)
    first = stubs.tuning.FineTune(request)
    assert stubs.tuning.FineTune(request).id == first.id
    with pytest.raises(grpc.RpcError) as reused:
        stubs.tuning.FineTune(tune(name="twice", request_id="r1"))
    assert reused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for validate_only in (False, True):
        with pytest.raises(grpc.RpcError) as taken:
            stubs.tuning.FineTune(tune(name="once", validate_only=validate_only))
        assert taken.value.code() is grpc.StatusCode.ALREADY_EXISTS
    stubs.wait(first.id)


@pytest.mark.parametrize("isolation", ["IN_PROCESS", "PROCESS"])
def test_a_killed_server_resumes_its_job(
    tmp_path: Path, make_server: Callable[..., ServerProcess], isolation: str
) -> None:
    first = make_server(data_dir=tmp_path / "killed")
    with grpc.insecure_channel(first.address) as channel:
        stubs = Stubs(channel)
        stubs.upload("shapes", drawn_pairs())
        kind = finetune_pb2.Isolation.Value(f"ISOLATION_{isolation}")
        stubs.tuning.FineTune(tune(name="survivor", max_steps=60, isolation=kind))
        stubs.tuning.FineTune(tune(name="queued", max_steps=1))
        for event in stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job="survivor"), timeout=200):
            if event.metric.stage == job_pb2.MetricEvent.STAGE_STEP:
                break
    children = psutil.Process(first.process.pid).children(recursive=True)
    assert len([one for one in children if TRAINER in one.cmdline()]) == (isolation == "PROCESS")
    first.kill()
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left, "what the server had begun outlives it"
    second = make_server(data_dir=tmp_path / "killed")
    with grpc.insecure_channel(second.address) as channel:
        stubs = Stubs(channel)
        assert stubs.wait("survivor").state == job_pb2.JOB_STATE_SUCCEEDED
        events = list(stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job="survivor")))
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        states = [event.state.state for event in events if event.HasField("state")]
        assert job_pb2.JOB_STATE_INTERRUPTED in states
        assert stubs.wait("queued").state == job_pb2.JOB_STATE_SUCCEEDED


def test_old_pairs_are_replayed(server: ServerProcess, stubs: Stubs) -> None:
    pairs = drawn_pairs()
    old = [hotclip.Pair(f"{text} as before", image) for image, text in pairs]
    with hotclip.Client(server.address) as client:
        stored = client.upload_dataset("old", old)
        run = client.finetune(
            "shapes",
            replay_data="old",
            method="lit",
            max_steps=2,
            val_split=0.25,
            activation="never",
        )
        version = run.wait().result_version
        lines = [e.detail.message for e in run.events() if isinstance(e.detail, hotclip.LogLine)]
        held_out = next(int(line.split()[2]) for line in lines if line.startswith("held out"))
        assert held_out > 0
        kept = len(pairs) - held_out
        assert f"replaying {kept} old pairs, without {held_out} of what is held out" in lines
        lineage = client.get_version(version).lineage
        assert lineage is not None
        assert lineage.datasets["replay"] == stored.id


def test_a_collection_is_mined_and_what_would_outdate_it_is_said(
    stubs: Stubs, server: ServerProcess
) -> None:
    pairs = drawn_pairs()
    with hotclip.Client(server.address) as client:
        client.create_collection("shop")
        client.upsert("shop", [(f"p{n}", image, {}) for n, (image, _) in enumerate(pairs)])
        checked = client.finetune("shapes", validate_only=True)
        assert checked.config["val_split"] == 0.1
        assert "shop" in checked.advice
        assert "lock_image" in checked.advice
        assert client.finetune("shapes", method="lit", validate_only=True).advice == ""
        run = client.finetune(
            "shapes",
            mining="shop",
            method="full",
            learning_rate=1e-3,
            max_steps=2,
            val_split=0.25,
            activation="never",
            isolation="process",
        )
        run.wait()
        first, *others = run.events()
        assert first.detail.message == run.advice == checked.advice
        lines = [e.detail.message for e in others if isinstance(e.detail, hotclip.LogLine)]
        held_out = next(int(line.split()[2]) for line in lines if line.startswith("held out"))
        assert f"mining {len(pairs) - held_out} images of shop" in lines
        assert any(line.startswith("epoch 1: hard negatives for") for line in lines)
        with pytest.raises(hotclip.errors.NotFound):
            client.finetune("shapes", mining="nobody")
        client.create_collection("bare", keep_sources=False)
        with pytest.raises(hotclip.errors.FailedPrecondition) as bare:
            client.finetune("shapes", mining="bare")
        assert bare.value.reason == "SOURCES_MISSING"
        for name in ("shop", "bare"):
            client.delete_collection(name)
