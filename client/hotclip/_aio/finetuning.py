"""Fine-tuning and measuring; methods of AsyncClient."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hotclip import _jobs
from hotclip._aio.datasets import dataset_for
from hotclip._aio.jobs import AsyncRun
from hotclip._dataset_file import PairSource
from hotclip._finetune_request import Freeze, Options, finetune_request
from hotclip._finetuning import (
    ActivationName,
    CompatName,
    IsolationName,
    MethodName,
    PositivesName,
    PrecisionName,
    SchedulerName,
    TrackerName,
    compat_of,
)
from hotclip._message import filled
from hotclip._upload_bar import ShowProgress
from hotclip_proto.v1 import finetune_pb2

if TYPE_CHECKING:
    from hotclip._aio.client import AsyncClient


async def finetune(
    self: AsyncClient,
    train_data: str | PairSource,
    eval_data: str | PairSource | None = None,
    *,
    model: str = "",
    base_version: str = "",
    replay_data: str | PairSource | None = None,
    query_data: str | PairSource | None = None,
    index_data: str | PairSource | None = None,
    val_split: float | None = None,
    monitor: str = "",
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    chunk_size: int = 0,
    method: MethodName = "auto",
    lora: Options | None = None,
    freeze: Freeze = False,
    lock_image: bool = False,
    lock_text: bool = False,
    loss: str = "auto",
    loss_options: Options | None = None,
    miner: str = "",
    miner_options: Options | None = None,
    items_per_class: int | None = None,
    positives: PositivesName = "off",
    negatives: int | None = None,
    mining: bool | str | Options | None = None,
    prompts: Sequence[str] = (),
    preserve: float | None = None,
    optimizer: str = "AdamW",
    optimizer_options: Options | None = None,
    learning_rate: float | None = None,
    warmup: float | None = None,
    scheduler: SchedulerName = "cosine",
    scheduler_options: Options | None = None,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
    precision: PrecisionName = "auto",
    augment: bool | None = None,
    seed: int = 0,
    early_stopping: bool | Options | None = None,
    keep_checkpoints: int | None = None,
    wise_ft: float | Options | None = None,
    soup: int = 0,
    export_onnx: bool = False,
    activation: ActivationName = "if_better",
    isolation: IsolationName = "in_process",
    device: str = "",
    trackers: Sequence[TrackerName] = (),
    k: int | None = None,
    compat: CompatName = "standard",
    name: str = "",
    description: str = "",
    request_id: str = "",
    validate_only: bool = False,
    upload_progress: ShowProgress = False,
    timeout: float | None = None,
) -> AsyncRun:
    """Starts training beside serving and returns at once. None means the server's default.

    Args:
        train_data: A str is a dataset's name or id. A pathlib.Path (CSV, JSON lines,
            WebDataset), a DatasetFile or a list of pairs is uploaded if the server does not
            have it; see upload_dataset.
        eval_data: Held-out data, likewise; None: val_split of train_data. Gives the validation
            loss and, without query_data, the retrieval metrics.
        model: Name of the model; empty: "default".
        base_version: Version to start from; empty: the live one.
        replay_data: Old pairs, likewise, that are trained on beside train_data so that what they
            say is not forgotten; none of them is held out.
        query_data: Queries of the retrieval metrics, likewise, where those are not eval_data; with
            neither eval_data nor val_split the validation loss is theirs too.
        index_data: Further images that evaluation searches among.
        val_split: Share of the groups held out without eval_data, in [0, 0.5]; None: 0.1, with
            query_data 0.
        monitor: Metric of held-out data that decides which weights are kept, averaged and put
            live: "monitor" (mean reciprocal rank of both directions, also if empty),
            "validation_loss" or a name such as "clip-text-to-clip-vision_ndcg_at_k".
        epochs: Passes over the data, 1 to 1,000.
        max_steps: Steps in total, instead of epochs.
        batch_size: Pairs a step, 2 to 65,536.
        chunk_size: Images or texts that a tower sees at a time; decides memory, not the
            result; 0: chosen by the server.
        method: Which weights are trained. "full"; "lora": small changes of attention;
            "projection": the last matrix of each tower; "lit": clip-text alone; "auto": lora
            below 1,000 pairs, else full.
        lora: Of "lora": {"rank": 2, "alpha": 2.0, "dora": False, "targets": ["q", "k", "v"]};
            targets may also be "out" and "mlp". Refused where "auto" is full.
        freeze: True: all but the projections. A number: the first blocks of each tower.
            "image" or "text": that tower.
        lock_image: clip-vision stays as it is: stored image vectors stay valid.
        lock_text: clip-text stays as it is.
        loss: "CLIPLoss" or "InfoNCE"; "SigLipLoss" for models with a logit bias; a loss of
            pytorch-metric-learning on labels, such as "TripletMarginLoss"; "auto": the model's
            own of the first two.
        loss_options: Keyword arguments of a loss of pytorch-metric-learning.
        miner: Chooses what such a loss sees, e.g. "TripletMarginMiner".
        miner_options: Keyword arguments of the miner.
        items_per_class: With such a loss: images of one class that are drawn together.
        positives: What items of the same text, image, group or label are to each other:
            positives ("share"), left out ("mask") or negatives ("off").
        negatives: How many of a pair's own negative texts and images come into its batch,
            0 to 16, each.
        mining: Hard negatives that the model finds itself. True: among the images and texts of
            train_data; a str: also among the images of that collection; or {"collection": "",
            "count": 1, "pool": 8, "ceiling": 0.95, "every": 1}.
        prompts: Texts of labelled images without a text, e.g. ["a photo of {label}"]; refused
            where there are none.
        preserve: Weight of the distance of each layer to that of the base, 0 to 1,000: more of
            it forgets less.
        optimizer: "AdamW", "Adam" or "SGD".
        optimizer_options: {"betas": (0.9, 0.98), "momentum": 0.9, "weight_decay": 0.05}.
        learning_rate: Peak, > 0; None: 2e-4 for lora, else 1e-5, for a model of 150 million
            weights or more; of a smaller one higher in proportion, at most 100 times.
        warmup: Share of the steps with rising learning rate, in [0, 1).
        scheduler: How it falls afterwards: "cosine", "linear", "constant",
            "cosine_with_restarts" or "polynomial".
        scheduler_options: {"cycles": 2} of cosine_with_restarts, {"power": 2.0} of polynomial.
        weight_decay: Decay of matrices, >= 0.
        layer_decay: Learning rate of a block as a share of that of the next, in (0, 1]; of "full"
            and "lit".
        clip_norm: Largest gradient norm, > 0.
        ema: Horizon of the moving average of the weights, which is kept, as a share of all
            steps, in [0, 1]; None: 0, off.
        precision: Of the towers: "fp32", "bf16" or "auto": bf16 on CUDA.
        augment: Random crops of the images, off unless asked for; with them a locked clip-vision
            sees each image in every epoch, else once.
        seed: Same seed, same data, same result.
        early_stopping: True, or {"monitor": "monitor", "patience": 2, "min_delta": 0.0,
            "mode": "max"}: ends when an epoch no longer makes it better. Left out, its monitor is
            the one above and its mode follows from that.
        keep_checkpoints: Besides the best one, 1 to 100.
        wise_ft: Share of the trained weights in what is stored, the rest is the base's, in
            [0, 1]; or {"finetuned_weight": 0.5} or {"alpha": 0.5}.
        soup: Averages the weights of the best of so many last epochs, 2 to 20; 0 is off.
        export_onnx: Also makes ONNX files of the result.
        activation: "if_better" on held-out data, "always" or "never".
        isolation: "in_process", or "process": training in a process of its own.
        device: "cpu", "cuda" or "cuda:<number>"; empty: the one that serves.
        trackers: Also told of the run: "tensorboard", "wandb", "mlflow".
        k: Length of the lists that are measured, 1 to 1,000; None: 20.
        compat: Definitions of the metrics, as of evaluate.
        name: Unique among jobs, 1 to 128 of [A-Za-z0-9._-]; empty: the id.
        description: Free text.
        request_id: The same id again within a day gives the same job; empty: a new one is made.
        validate_only: Check everything, start nothing; the handle has no id, and its `config`
                says what would be done.
        upload_progress: Of data that is uploaded, as progress of upload_dataset.
        timeout: Seconds for starting, without the upload; None: the client's default.

    Raises:
        InvalidArgument: Each bad field named.
        NotFound: No such model, version or dataset.
        AlreadyExists: The name is taken.
    """
    request = finetune_request(
        model=model,
        base_version=base_version,
        val_split=val_split,
        monitor=monitor,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        chunk_size=chunk_size,
        method=method,
        lora=lora,
        freeze=freeze,
        lock_image=lock_image,
        lock_text=lock_text,
        loss=loss,
        loss_options=loss_options,
        miner=miner,
        miner_options=miner_options,
        items_per_class=items_per_class,
        positives=positives,
        negatives=negatives,
        mining=mining,
        prompts=prompts,
        preserve=preserve,
        optimizer=optimizer,
        optimizer_options=optimizer_options,
        learning_rate=learning_rate,
        warmup=warmup,
        scheduler=scheduler,
        scheduler_options=scheduler_options,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        clip_norm=clip_norm,
        ema=ema,
        precision=precision,
        augment=augment,
        seed=seed,
        early_stopping=early_stopping,
        keep_checkpoints=keep_checkpoints,
        wise_ft=wise_ft,
        soup=soup,
        export_onnx=export_onnx,
        activation=activation,
        isolation=isolation,
        device=device,
        trackers=trackers,
        k=k,
        compat=compat,
        name=name,
        description=description,
        request_id=request_id,
        validate_only=validate_only,
    )
    request.train_dataset = await dataset_for(self, train_data, upload_progress)
    if replay_data is not None:
        request.replay_dataset = await dataset_for(self, replay_data, upload_progress)
    if eval_data is not None:
        request.eval_dataset = await dataset_for(self, eval_data, upload_progress)
    if query_data is not None:
        request.query_dataset = await dataset_for(self, query_data, upload_progress)
    if index_data is not None:
        request.index_dataset = await dataset_for(self, index_data, upload_progress)
    connection = self._connection
    stub = connection.stubs().finetune
    started = await connection.call(stub.FineTune, request, connection.deadline(timeout))
    return AsyncRun(connection, _jobs.job(started))


async def evaluate(
    self: AsyncClient,
    data: str | PairSource,
    *,
    model: str = "",
    version: str = "",
    index_data: str | PairSource | None = None,
    k: int | None = None,
    compat: CompatName = "standard",
    alphas: Sequence[float] = (),
    base_version: str = "",
    prompts: Sequence[str] = (),
    name: str = "",
    request_id: str = "",
    upload_progress: ShowProgress = False,
    timeout: float | None = None,
) -> AsyncRun:
    """Starts measuring retrieval of a version on pairs, in both directions.

    Args:
        data: As train_data of finetune.
        model: Name of the model; empty: "default".
        version: Version id; empty: the live one.
        index_data: Further images to search among.
        k: Length of the lists, 1 to 1,000; None: 20.
        compat: Whose definitions the metrics follow where programs differ: "standard" (the
            textbook's), "finetuner" (DocArray's, which Jina Finetuner reported) or
            "clip_benchmark" (recall is the hit rate).
        alphas: Also measures the weights between base_version (0) and version (1): events of
            the stage ALPHA tell which is best, merge_versions makes it.
        base_version: With alphas: version id; empty: the parent of version.
        prompts: Texts of labelled images without a text, as of finetune.
        name: Unique among jobs; empty: the id.
        request_id: The same id again within a day gives the same job; empty: a new one is made.
        upload_progress: Of data that is uploaded, as progress of upload_dataset.
        timeout: Seconds for starting, without the upload; None: the client's default.

    Raises:
        InvalidArgument, NotFound: As finetune.
    """
    values = {
        "model": model,
        "version": version,
        "k": k,
        "compat": compat_of(compat),
        "alphas": alphas,
        "base_version": base_version,
        "prompts": [prompts] if isinstance(prompts, str) else prompts,
        "name": name,
        "request_id": request_id or uuid.uuid4().hex,
    }
    request = filled(finetune_pb2.EvaluateRequest, values)
    request.dataset = await dataset_for(self, data, upload_progress)
    if index_data is not None:
        request.index_dataset = await dataset_for(self, index_data, upload_progress)
    connection = self._connection
    stub = connection.stubs().finetune
    started = await connection.call(stub.Evaluate, request, connection.deadline(timeout))
    return AsyncRun(connection, _jobs.job(started))
