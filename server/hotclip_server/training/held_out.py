"""Measures any version on a dataset, for jobs that compare versions."""

from __future__ import annotations

from hotclip_server.jobs.context import JobContext
from hotclip_server.training.evaluate import metrics_of
from hotclip_server.training.jobs import (
    Datasets,
    Versions,
    evaluator_of,
    load_clip,
    measure,
    opened,
    own_stream,
    training_errors,
)
from hotclip_server.training.prompts import DEFAULT_PROMPT, with_texts


class HeldOut:
    """As the job of Evaluate does it.

    Args:
        device: Where it encodes, e.g. "cpu" or "cuda:0".
    """

    def __init__(self, versions: Versions, datasets: Datasets, *, device: str) -> None:
        self._versions = versions
        self._datasets = datasets
        self._device = device

    def __call__(self, job: JobContext, version: str, dataset: str, k: int) -> dict[str, float]:
        """Retrieval metrics by name, both directions; gives way to serving, ends with the job.

        Args:
            dataset: Id.
            k: Length of the lists.

        Raises:
            HotclipError: as the job of Evaluate fails.
        """
        with (
            training_errors(),
            own_stream(self._device),
            opened(job, self._datasets, dataset) as (data,),
        ):
            if data is None:
                raise RuntimeError("a measurement without data. This is a bug.")
            clip = load_clip(self._versions, version, self._device)
            pairs = with_texts(data, (DEFAULT_PROMPT,))
            evaluator = evaluator_of(clip, pairs, None, k=k, waits=job.yielding.waits)
            return metrics_of(measure(job, evaluator, clip))
