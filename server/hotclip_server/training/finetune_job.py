"""The job that makes a better version: prepare → measure → train → measure → stage → activate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from hotclip_server.errors import Aborted, HotclipError, ResourceExhausted
from hotclip_server.jobs.context import Cancelled, JobContext, JobResult
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.releases import Releases
from hotclip_server.jobs.specs import ActivationRule, FineTuneSpec, Isolation
from hotclip_server.models.memory import free_bytes_of
from hotclip_server.training.candidates import CANDIDATES, MOST_CANDIDATES, copy_candidates
from hotclip_server.training.child_work import child_work
from hotclip_server.training.config import Method
from hotclip_server.training.finetune_work import Made, Work, Workplace, local_work
from hotclip_server.training.monitors import signed

ACTIVATION_ATTEMPTS = 5
MEMORY_FACTORS: Mapping[Method, int] = {"full": 6, "lit": 4, "lora": 3, "projection": 3, "auto": 3}
"""Bytes that training takes at least, a byte of the weights file. "full": weights, their average,
gradients, two moments of AdamW, and one more while loading; the others have only the first and the
last of what they leave as it is. Activations come on top."""


class FineTuneHandler:
    """Implements `JobHandler`.

    Args:
        place: Where it computes.
        free_bytes: Free memory of the device, None if unknown; default: asks the device.
        export_onnx: Makes ONNX files of a version of a model in a job; gives the artifact's id.
        sample_images: Gives at most so many images of a collection, by a seed.
    """

    kind = JobKind.FINE_TUNE

    def __init__(
        self,
        place: Workplace,
        releases: Releases,
        *,
        free_bytes: Callable[[], int | None] | None = None,
        export_onnx: Callable[[JobContext, str, str], str] | None = None,
        sample_images: Callable[[str, int, int], Iterable[bytes]] | None = None,
    ) -> None:
        self._place = place
        self._releases = releases
        self._free_bytes = free_bytes
        self._export_onnx = export_onnx
        self._sample_images = sample_images

    def run(self, job: JobContext) -> JobResult:
        """Trains and releases; see `JobHandler.run`."""
        spec = FineTuneSpec.from_json(job.spec)
        place = replace(self._place, device=spec.device or self._place.device)
        self._require_memory(place, spec)
        self._copy_candidates(place, job, spec)
        with self._work(place, job, spec) as work:
            result = self._release(job, spec, work, work.make())
            return replace(result, artifacts=self._exported(job, spec, result.result_version))

    def _work(
        self, place: Workplace, job: JobContext, spec: FineTuneSpec
    ) -> AbstractContextManager[Work]:
        if spec.isolation is Isolation.PROCESS:
            return child_work(place, job, spec)
        return local_work(place, job, spec)

    def _copy_candidates(self, place: Workplace, job: JobContext, spec: FineTuneSpec) -> None:
        """Once in the life of a job."""
        mining, folder = spec.config.mining, place.folders / job.id / CANDIDATES
        if mining is None or not mining.collection or folder.exists():
            return
        if self._sample_images is None:
            raise RuntimeError("nothing here reads collections. This is a bug.")
        images = self._sample_images(mining.collection, MOST_CANDIDATES, spec.config.seed)
        copy_candidates(images, folder, job.give_way)

    def _require_memory(self, place: Workplace, spec: FineTuneSpec) -> None:
        """A process that the kernel ends for want of memory serves nobody."""
        config = spec.config
        locked = config.locks_image or config.lock_text
        factor = MEMORY_FACTORS["lit" if locked and config.method == "full" else config.method]
        factor += config.preserve > 0  # the base beside it
        free = (self._free_bytes or free_bytes_of(place.device))()
        version = spec.base_version
        needed = place.versions.read_manifest(version).size_bytes * factor
        if free is not None and free < needed:
            raise ResourceExhausted(
                f"training version {version} needs {needed} bytes at least, {free} are free",
                reason="OUT_OF_MEMORY",
            )

    def _exported(self, job: JobContext, spec: FineTuneSpec, version: str) -> tuple[str, ...]:
        """The version is there whatever becomes of its files: Export can make them later."""
        if not spec.export_onnx:
            return ()
        if self._export_onnx is None:
            raise RuntimeError("nothing here exports. This is a bug.")
        try:
            return (self._export_onnx(job, version, spec.model),)
        except HotclipError as error:
            job.log(f"version {version} has no ONNX files: {error.message}", "WARNING")
            return ()
        except Cancelled:  # too late for what is released already: only this is left out
            job.log(f"version {version} has no ONNX files: cancelled", "WARNING")
            return ()

    def _release(self, job: JobContext, spec: FineTuneSpec, work: Work, made: Made) -> JobResult:
        manifest = self._place.versions.read_manifest(made.version)
        self._releases.register(spec.model, manifest, made.metrics)
        job.log(f"stored version {made.version}")
        if spec.activation is ActivationRule.ALWAYS:
            self._releases.activate(spec.model, made.version)
            return _result(job, made.version, True, "activated")
        try:
            self._releases.stage(made.version)
        except ResourceExhausted as error:
            # The weights are safe on disk; a later ActivateVersion loads them.
            job.log(f"version {made.version} is not staged: {error.message}", "WARNING")
        if spec.activation is ActivationRule.NEVER:
            return _result(job, made.version, False, "staged")
        if made.score is None:
            return _result(job, made.version, False, "staged: no held-out data to compare with")
        return self._activate_if_better(job, spec, work, made.version, made.score)

    def _activate_if_better(
        self, job: JobContext, spec: FineTuneSpec, work: Work, version: str, score: float
    ) -> JobResult:
        """Compare-and-set: against whatever is live now, on the same held-out data; against the
        base where nothing is."""

        def shown(score: float) -> str:
            return f"{signed(spec.monitor, score):.4f}"

        for _ in range(ACTIVATION_ATTEMPTS):
            state = self._releases.state(spec.model)
            live = state.live_version
            if live == version:
                # By an attempt that was broken off then, unless nothing was changed at all.
                return _result(job, version, version != spec.base_version, "it is live")
            rival = live or spec.base_version
            present = work.score_of(rival)
            if not score > present:
                whose = "live version" if live else "nothing is live, its base"
                why = f"staged: {spec.monitor} {shown(score)}, {whose} {rival} has {shown(present)}"
                return _result(job, version, False, why)
            try:
                self._releases.activate(spec.model, version, etag=state.etag)
            except Aborted:
                job.log("another version went live meanwhile; comparing again")
                continue
            why = f"activated: {spec.monitor} {shown(score)}, version {rival} had {shown(present)}"
            return _result(job, version, True, why)
        return _result(job, version, False, "staged: the live version kept changing")


def _result(job: JobContext, version: str, activated: bool, message: str) -> JobResult:
    job.log(f"version {version}: {message}")
    return JobResult(result_version=version, activated=activated, message=message)
