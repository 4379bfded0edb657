"""The job that measures a version on a dataset."""

from __future__ import annotations

from hotclip_server.errors import FailedPrecondition
from hotclip_server.jobs.context import JobContext, JobResult
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.specs import EvaluateSpec
from hotclip_server.training.clip import Clip
from hotclip_server.training.evaluate import Evaluation, Evaluator, metrics_of
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
from hotclip_server.training.prompts import with_texts
from hotclip_server.training.wise_ft import sweep


class EvaluateHandler:
    """Implements `JobHandler`.

    Args:
        device: Where it encodes, e.g. "cpu" or "cuda:0".
    """

    kind = JobKind.EVALUATE

    def __init__(self, versions: Versions, datasets: Datasets, *, device: str = "cpu") -> None:
        self._versions = versions
        self._datasets = datasets
        self._device = device

    def run(self, job: JobContext) -> JobResult:
        """Measures; see `JobHandler.run`."""
        spec = EvaluateSpec.from_json(job.spec)
        names = (spec.dataset, spec.index_dataset)
        with (
            training_errors(),
            own_stream(self._device),
            opened(job, self._datasets, *names) as (data, extra),
        ):
            if data is None:
                raise RuntimeError("an evaluation without data. This is a bug.")
            clip = load_clip(self._versions, spec.version, self._device)
            job.running()
            queries, index = with_texts(data, spec.prompts), with_texts(extra, spec.prompts)
            evaluator = evaluator_of(
                clip, queries, index, k=spec.k, compat=spec.compat, waits=job.yielding.waits
            )
            found = measure(job, evaluator, clip)
            self._sweep(job, spec, evaluator, clip, found)
            job.metric("AFTER", metrics_of(found), step=len(data.pairs), progress=1.0)
            for example in found.examples:
                job.example(
                    example.query, before=(), after=example.found[:10], relevant=example.relevant
                )
        return JobResult(message=f"measured version {spec.version}")

    def _sweep(
        self,
        job: JobContext,
        spec: EvaluateSpec,
        evaluator: Evaluator,
        clip: Clip,
        found: Evaluation,
    ) -> None:
        """Measures the weights between the base and the version; `clip` holds others then."""
        if not spec.alphas:
            return
        base = load_clip(self._versions, spec.base_version, "cpu").model.state_dict()
        tuned = {name: value.detach().clone() for name, value in clip.model.state_dict().items()}
        if {n: v.shape for n, v in base.items()} != {n: v.shape for n, v in tuned.items()}:
            raise FailedPrecondition(
                f"versions {spec.base_version} and {spec.version} have different architectures",
                reason="ARCHITECTURES_DIFFER",
            )
        points = sweep(
            clip.model,
            base,
            tuned,
            lambda: measure(job, evaluator, clip),
            alphas=spec.alphas,
            known={1.0: found},
        )
        for place, (alpha, measured) in enumerate(points, 1):
            job.metric(
                "ALPHA",
                {"alpha": alpha, **metrics_of(measured)},
                step=place,
                total_steps=len(spec.alphas),
                progress=place / (1 + len(spec.alphas)),
            )
