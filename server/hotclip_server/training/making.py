"""What the server needs of training; what computes is imported when it is first called."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hotclip_server.config import ServerConfig
from hotclip_server.jobs.context import JobContext, JobHandler
from hotclip_server.jobs.deferred import DeferredHandler
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.releases import Releases
from hotclip_server.shared_flag import SharedFlag

if TYPE_CHECKING:
    from hotclip_server.datasets.store import DatasetStore
    from hotclip_server.models.store import VersionStore
    from hotclip_server.training.gradients import Drawing
    from hotclip_server.training.ground import Ground


def make_held_out(
    device: str, store: VersionStore, datasets: DatasetStore
) -> Callable[[JobContext, str, str, int], dict[str, float]]:
    """What measures versions on datasets; see `HeldOut`."""

    def measure(job: JobContext, version: str, dataset: str, k: int) -> dict[str, float]:
        from hotclip_server.training.held_out import HeldOut

        return HeldOut(store, datasets, device=device)(job, version, dataset, k)

    return measure


def make_ground(device: str, store: VersionStore) -> Ground:
    """What knows where runs may train. Imports torch."""
    from hotclip_server.training import ground

    return ground.Ground(device, store.folder)


def make_trainers(
    config: ServerConfig,
    device: str,
    store: VersionStore,
    datasets: DatasetStore,
    releases: Releases,
    drawing: Drawing,
    export_onnx: Callable[[JobContext, str, str], str],
    sample_images: Callable[[str, int, int], Iterable[bytes]],
    waiting: SharedFlag,
) -> list[JobHandler]:
    """The jobs that train and measure.

    Args:
        drawing, waiting: See `Workplace`.
        export_onnx, sample_images: See `FineTuneHandler`.
    """

    def fine_tune() -> JobHandler:
        from hotclip_server.training.finetune_job import FineTuneHandler
        from hotclip_server.training.finetune_work import Roots, Workplace

        folder = config.data_dir
        place = Workplace(
            versions=store,
            datasets=datasets,
            folders=folder / "checkpoints",
            device=device,
            threads=config.threads,
            min_free_disk_bytes=config.min_free_disk_bytes,
            drawing=drawing,
            roots=Roots(versions=folder / "versions", datasets=folder / "datasets"),
            waiting=waiting,
        )
        return FineTuneHandler(
            place, releases, export_onnx=export_onnx, sample_images=sample_images
        )

    def evaluate() -> JobHandler:
        from hotclip_server.training.evaluate_job import EvaluateHandler

        return EvaluateHandler(store, datasets, device=device)

    return [
        DeferredHandler(JobKind.FINE_TUNE, fine_tune),
        DeferredHandler(JobKind.EVALUATE, evaluate),
    ]
