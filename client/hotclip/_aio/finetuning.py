"""Fine-tuning and measuring; methods of AsyncClient."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hotclip import _jobs
from hotclip._aio.datasets import dataset_for
from hotclip._aio.jobs import AsyncRun
from hotclip._dataset_file import PairSource
from hotclip._finetuning import (
    ActivationName,
    SchedulerName,
    activation_of,
    loss_of,
    scheduler_of,
)
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
    index_data: str | PairSource | None = None,
    val_split: float | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    warmup: float | None = None,
    scheduler: SchedulerName = "cosine",
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    ema: float | None = None,
    loss: str = "InfoNCE",
    lock_image: bool = False,
    lock_text: bool = False,
    augment: bool | None = None,
    seed: int = 0,
    activation: ActivationName = "if_better",
    name: str = "",
    description: str = "",
    request_id: str = "",
    validate_only: bool = False,
    timeout: float | None = None,
) -> AsyncRun:
    """Starts training beside serving and returns at once. None means the server's default.

    Args:
        train_data: A str is a dataset's name or id. A pathlib.Path (CSV, JSON lines,
            WebDataset), a DatasetFile or a list of pairs is uploaded if the server does not
            have it; see upload_dataset.
        eval_data: Held-out data, likewise; None: val_split of train_data.
        model: Name of the model; empty: "default".
        base_version: Version to start from; empty: the live one.
        index_data: Further images that evaluation searches among.
        val_split: Share of the groups held out without eval_data, in [0, 0.5].
        epochs: Passes over the data, 1 to 1,000.
        max_steps: Ends after so many steps at the latest.
        batch_size: Pairs a step, 2 to 65,536.
        learning_rate: Peak, > 0.
        warmup: Share of the steps with rising learning rate, in [0, 1).
        scheduler: How it falls afterwards: "cosine", "linear" or "constant".
        weight_decay: AdamW's decay of matrices, >= 0.
        clip_norm: Largest gradient norm, > 0.
        ema: Horizon of the moving average of the weights, which is kept, as a share of all
            steps, in [0, 1]; 0 is off.
        loss: "InfoNCE" or an alias such as "CLIPLoss".
        lock_image: clip-vision stays as it is: stored image vectors stay valid.
        lock_text: clip-text stays as it is.
        augment: Random crops of the images.
        seed: Same seed, same data, same result.
        activation: "if_better" on held-out data, "always" or "never".
        name: Unique among jobs, 1 to 128 of [A-Za-z0-9._-]; empty: the id.
        description: Free text.
        request_id: The same id again gives the same job; empty: a new one is made.
        validate_only: Check everything, start nothing; the handle has no id.
        timeout: Seconds for starting, without the upload; None: the client's default.

    Raises:
        InvalidArgument: Each bad field named.
        NotFound: No such model, version or dataset.
        AlreadyExists: The name is taken.
    """
    request = finetune_pb2.FineTuneRequest(
        model=model,
        base_version=base_version,
        val_split=val_split,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        scheduler=scheduler_of(scheduler),
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        ema=ema,
        loss=loss_of(loss),
        lock_image=lock_image,
        lock_text=lock_text,
        augment=augment,
        seed=seed,
        activation=activation_of(activation),
        name=name,
        description=description,
        request_id=request_id or uuid.uuid4().hex,
        validate_only=validate_only,
    )
    request.train_dataset = await dataset_for(self, train_data)
    if eval_data is not None:
        request.eval_dataset = await dataset_for(self, eval_data)
    if index_data is not None:
        request.index_dataset = await dataset_for(self, index_data)
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
    alphas: Sequence[float] = (),
    base_version: str = "",
    name: str = "",
    request_id: str = "",
    timeout: float | None = None,
) -> AsyncRun:
    """Starts measuring retrieval of a version on pairs, in both directions.

    Args:
        data: As train_data of finetune.
        model: Name of the model; empty: "default".
        version: Version id; empty: the live one.
        index_data: Further images to search among.
        k: Length of the lists, 1 to 1,000; None: 20.
        alphas: Also measures the weights between base_version (0) and version (1): events of
            the stage ALPHA tell which is best, merge_versions makes it.
        base_version: With alphas: version id; empty: the parent of version.
        name: Unique among jobs; empty: the id.
        request_id: The same id again gives the same job; empty: a new one is made.
        timeout: Seconds for starting, without the upload; None: the client's default.

    Raises:
        InvalidArgument, NotFound: As finetune.
    """
    request = finetune_pb2.EvaluateRequest(
        model=model,
        version=version,
        k=k,
        alphas=alphas,
        base_version=base_version,
        name=name,
        request_id=request_id or uuid.uuid4().hex,
    )
    request.dataset = await dataset_for(self, data)
    if index_data is not None:
        request.index_dataset = await dataset_for(self, index_data)
    connection = self._connection
    stub = connection.stubs().finetune
    started = await connection.call(stub.Evaluate, request, connection.deadline(timeout))
    return AsyncRun(connection, _jobs.job(started))
