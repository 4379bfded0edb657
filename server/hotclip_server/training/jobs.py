"""What fine-tunes and evaluations share: where their data and models come from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch.nn import Module

from hotclip_server.datasets.joined import JoinedPairs
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.encoding.open_clip_encoder import OpenClipEncoder
from hotclip_server.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from hotclip_server.jobs.context import JobContext
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.training.background import Background, Ticker, workers_begun
from hotclip_server.training.clip import Clip, clip_of
from hotclip_server.training.errors import InvalidPairs, InvalidTrainConfig, TrainingDiverged
from hotclip_server.training.evaluate import Evaluation, Evaluator
from hotclip_server.training.lazy_pairs import Paused
from hotclip_server.training.metrics import Compat
from hotclip_server.training.monitors import MONITOR
from hotclip_server.training.pairs import PairSet, SomePairs

_OWN = threading.local()
"""Ids of the workers of each thread that computes."""
EXAMPLES = 10
"""Queries whose results are shown."""


class Versions(Protocol):
    """Stored versions; `VersionStore` is one. Every method blocks."""

    def read_manifest(self, version_id: str) -> VersionManifest:
        """What a stored version is."""

    def load(self, version_id: str, *, device: str) -> OpenClipEncoder:
        """A copy in memory of its own."""

    def save_trained(self, model: Module, *, base: str, source: str) -> VersionManifest:
        """Stores new weights of `base`."""


class Datasets(Protocol):
    """Stored datasets; `DatasetStore` is one. Blocks."""

    def load(self, dataset_id: str) -> StoredDataset:
        """Opens one for reading."""


def load_clip(versions: Versions, version_id: str, device: str) -> Clip:
    """A private fp32 copy of a version: nothing that serves shares its weights."""
    encoder = versions.load(version_id, device=device)
    return clip_of(encoder.model, encoder.tokenizer)


@contextmanager
def opened(job: JobContext, datasets: Datasets, *ids: str) -> Iterator[list[PairSet | None]]:
    """Datasets to read on the thread of the job, which gives way as it reads their rows; closed
    at the end. None for each empty id."""
    with ExitStack() as stack:
        found: list[PairSet | None] = []
        for dataset_id in ids:
            if not dataset_id:
                found.append(None)
                continue
            stored = datasets.load(dataset_id)
            stack.callback(stored.close)
            stored.locate(job.give_way)
            found.append(SomePairs(Paused(stored.pairs, job.give_way), stored))
        yield found


def evaluator_of(
    clip: Clip,
    queries: PairSet,
    extra: PairSet | None,
    *,
    rated: PairSet | None = None,
    monitor: str = MONITOR,
    k: int = 20,
    compat: Compat = "standard",
    loss_batch: int = 64,
    image_locked: bool = False,
    waits: Callable[[], bool],
) -> Evaluator:
    """Searches `queries` among their own images and texts and those of `extra`, and measures the
    loss of `rated`, or of the queries. On a CPU nothing is decoded ahead while somebody `waits`."""
    index = queries if extra is None else JoinedPairs(queries, extra)
    # Serving waits for a batch at most: on a CPU a small one is as fast an image as a large one.
    batch_size = 32 if clip.device.type == "cpu" else 256
    return Evaluator(
        clip,
        queries,
        index,
        rated=rated,
        monitor=monitor,
        k=k,
        compat=compat,
        batch_size=batch_size,
        loss_batch=loss_batch,
        image_locked=image_locked,
        waits=waits if clip.device.type == "cpu" else None,
    )


def measure(job: JobContext, evaluator: Evaluator, clip: Clip) -> Evaluation:
    """Evaluates, giving way to serving, ending when the job is cancelled.

    Raises:
        FailedPrecondition: an embedding is not finite; reason VERSION_UNFIT.
    """
    try:
        return evaluator.evaluate(clip, examples=EXAMPLES, pause=job.give_way)
    except InvalidPairs:
        raise
    except ValueError as error:
        raise FailedPrecondition(str(error), reason="VERSION_UNFIT") from error


@contextmanager
def own_stream(device: str) -> Iterator[None]:
    """On CUDA a stream beside that of serving: a batch does not queue behind a whole step."""
    if not device.startswith("cuda"):
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield


@contextmanager
def openmp_in_background(device: str) -> Iterator[None]:
    """On a CPU the workers of this thread compute when serving does not; this thread itself
    runs Python and keeps its priority. A product ends with its slowest worker, so that a step
    that is under way lets a batch go first."""
    if device != "cpu":
        yield
        return
    if not hasattr(_OWN, "workers"):
        _OWN.workers = workers_begun(use_every_worker)
    workers: list[int] = _OWN.workers
    with Ticker(Background(lambda: workers)):
        yield


def use_every_worker() -> None:
    """OpenMP keeps those that it begins here for this thread."""
    torch.ones(1 << 20).exp_()
    torch.ones(512, 512) @ torch.ones(512, 512)


@contextmanager
def training_errors() -> Iterator[None]:
    """The trainer's errors as the server's."""
    try:
        yield
    except InvalidPairs as error:
        raise InvalidArgument(str(error), reason="PAIRS_INVALID") from error
    except InvalidTrainConfig as error:
        raise InvalidArgument(str(error), reason="CONFIG_INVALID") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ResourceExhausted(
            "the device's memory is full; a smaller batch_size needs less", reason="OUT_OF_MEMORY"
        ) from error
    except TrainingDiverged as error:
        raise FailedPrecondition(str(error), reason="TRAINING_DIVERGED") from error
