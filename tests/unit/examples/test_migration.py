"""The migration page names calls, arguments and options that exist."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pytorch_metric_learning import losses, miners

import hotclip
from hotclip._finetune_request import finetune_request
from hotclip._jobs import job
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import job_pb2
from hotclip_server import errors
from hotclip_server.config import ServerConfig
from hotclip_server.services.finetune_requests import check_fine_tune
from hotclip_server.training.metric_names import METRIC_LOSSES, METRIC_MINERS

PAGE = (Path(__file__).parents[3] / "examples/migration.md").read_text("utf-8")
ROOTS = {"hotclip": hotclip, "client": hotclip.Client, "run": hotclip.Run}
ROOTS["model"] = hotclip.LocalModel
FLAGS = {f"--{field.name.replace('_', '-')}" for field in fields(ServerConfig)} | {"--config"}


def rows() -> list[list[str]]:
    """Theirs, ours and the remark, of every row of every table."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[1] not in ("hotclip", "argument of `client.finetune`")]


def ours() -> list[str]:
    """Code in the second columns, and whole python blocks."""
    spans = [span for row in rows() for span in re.findall(r"`([^`]+)`", row[1])]
    return spans + re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def calls(code: str) -> list[ast.Call]:
    """Calls whose function is an attribute of one of our roots, or of what such a call gives."""
    return [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]


def owner_of(value: ast.expr) -> object:
    """What the calls of an expression are looked up on; None if it is none of ours."""
    match value:
        case ast.Name(id=name):
            return ROOTS.get(name)
        case ast.Attribute(value=inner, attr=name):
            owner = owner_of(inner)
            return None if owner is None else getattr(owner, name, None)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="client"), attr="get_job")):
            return hotclip.Run
    return None


def bind(call: ast.Call) -> bool:
    """Whether it is a call of ours, which then takes these arguments."""
    assert isinstance(call.func, ast.Attribute)
    owner = owner_of(call.func.value)
    if owner is None:
        return False
    function = getattr(owner, call.func.attr)
    positional: list[object] = list(call.args)
    if inspect.isclass(owner) and inspect.isfunction(function):
        positional.insert(0, owner)  # self
    named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    inspect.signature(function).bind(*positional, **named)
    return True


def test_every_call_of_ours_exists() -> None:
    bound = [
        bind(call) for code in ours() if not code.startswith("hotclip-") for call in calls(code)
    ]
    assert sum(bound) > 60


@pytest.mark.parametrize(
    "code",
    [
        "client.finetune(pairs, run_name='a')",
        "client.get_job('fashion', 'experiment')",
        "client.get_job('fashion').delete(now=True)",
        "run.save_artifact(to='folder')",
        "hotclip.get_model('file', token='a')",
        "hotclip.Image.from_url()",
        "model.encode()",
    ],
)
def test_a_wrong_call_would_be_found(code: str) -> None:
    with pytest.raises(TypeError):
        list(map(bind, calls(code)))


def test_a_call_that_is_not_there_would_be_found() -> None:
    with pytest.raises(AttributeError):
        bind(calls("client.no_such_call()")[0])


def test_every_option_of_the_server_exists() -> None:
    commands = [code for code in ours() if code.startswith("hotclip-server")]
    assert len(commands) > 10
    named = {flag for command in commands for flag in re.findall(r"--[a-z-]+", command)}
    assert named <= FLAGS


def test_every_row_says_what_to_do() -> None:
    for theirs, here, remark in rows():
        assert theirs or here, remark
        assert here == "—" or "`" in here, here
        assert here != "—" or len(remark.split()) > 1, f"{theirs}: what to do instead?"


ATTRIBUTES = {
    "run": hotclip.Run(None, job(job_pb2.Job())),  # type: ignore[arg-type]  # it calls nothing
    "run.job()": job(job_pb2.Job()),
}


def test_every_attribute_of_a_run_exists() -> None:
    named = [
        (ATTRIBUTES[ast.unparse(node.value)], node.attr)
        for code in ours()
        if not code.startswith("hotclip-")
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ATTRIBUTES
    ]
    assert len(named) > 15
    assert [name for owner, name in named if not hasattr(owner, name)] == []


def check_finetune(call: ast.Call) -> bool:
    """Whether it is a fine-tune; client and server then take the values that it spells out."""
    if ast.unparse(call.func) != "client.finetune":
        return False
    known = inspect.signature(finetune_request).parameters
    values: dict[str, Any] = {
        name: parameter.default
        for name, parameter in inspect.signature(hotclip.Client.finetune).parameters.items()
        if name in known
    }
    for keyword in call.keywords:
        if keyword.arg in known:
            try:
                values[keyword.arg] = ast.literal_eval(keyword.value)
            except ValueError:  # a variable
                continue
    request = finetune_request(**values)
    request.train_dataset = "pairs"
    check_fine_tune(request)
    return True


def test_client_and_server_take_what_fine_tunes_are_told() -> None:
    found = [code for code in ours() if not code.startswith("hotclip-")]
    assert sum(check_finetune(call) for code in found for call in calls(code)) > 20


@pytest.mark.parametrize(
    "arguments",
    [
        "loss='ArcFaceLoss'",
        "loss='TripletMarginLoss', loss_options={'margn': 0.2}",
        "loss='TripletMarginLoss', miner='TripletMiner'",
        "loss='TripletMarginLoss', miner='TripletMarginMiner', miner_options={'epsilon': 0.2}",
        "early_stopping={'patients': 2}",
        "early_stopping={'monitor': 'val_loss'}",
        "optimizer='Adam', optimizer_options={'beta': 0.9}",
        "scheduler='linear', warmup=10",
        "trackers=['neptune']",
    ],
)
def test_a_wrong_value_would_be_found(arguments: str) -> None:
    with pytest.raises((InvalidArgument, errors.InvalidArgument)):
        list(map(check_finetune, calls(f"client.finetune(pairs, {arguments})")))


def test_losses_and_miners_are_those_of_the_server_and_the_others_of_the_library() -> None:
    section = PAGE.split("### Losses and miners of pytorch-metric-learning")[1].split("\n## ")[0]
    taken, others = (set(re.findall(r"`([A-Z]\w+)`", part)) for part in section.split("Not taken:"))
    assert taken == {*METRIC_LOSSES, *METRIC_MINERS}
    known = {
        name
        for module in (losses, miners)
        for name, made in vars(module).items()
        if inspect.isclass(made) and not name.startswith("Base") and not name.endswith("Mixin")
    }
    assert others == known - taken


FINETUNER_ARGUMENTS = """
    model train_data eval_data val_split model_artifact run_name description experiment_name
    model_options loss miner miner_options optimizer optimizer_options learning_rate epochs
    batch_size scheduler scheduler_options freeze output_dim device num_workers to_onnx
    csv_options public num_items_per_class sampler loss_optimizer loss_optimizer_options
"""  # of finetuner.fit 0.8.1, without callbacks, which have a table of their own
FINETUNER_NAMES = """
    login get_token describe_models list_models list_model_options list_callbacks fit create_run
    create_training_run synthesize create_synthesis_run get_run list_runs delete_run delete_runs
    create_experiment get_experiment list_experiments delete_experiment build_model get_model
    encode cos_sim status logs stream_logs metrics display_metrics example_results
    display_examples save_artifact artifact_id EvaluationCallback BestModelCheckpoint
    TrainingCheckpoint EarlyStopping WandBLogger WiSEFTCallback
"""
CLIP_AS_SERVICE_NAMES = """
    encode aencode rank arank index aindex search asearch profile batch_size prefetch
    show_progress parameters on_done on_error on_always name device jit num_worker_preprocess
    minibatch_size access_paths dtype model_path port protocol cors replicas monitoring
    port_monitoring
"""


@pytest.mark.parametrize("names", [FINETUNER_ARGUMENTS, FINETUNER_NAMES, CLIP_AS_SERVICE_NAMES])
def test_every_call_of_theirs_is_there(names: str) -> None:
    text = [line for line in PAGE.splitlines() if not line.startswith("| ")]
    told = "\n".join([*text, *(row[0] for row in rows())])
    missing = [name for name in names.split() if not re.search(rf"\b{name}\b", told)]
    assert missing == []
