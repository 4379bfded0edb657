"""The suite finetune: how fast it trains, and what serving notices of it."""

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.encode_model import SERVER_DEFAULTS, note
from benchmarks.figures import Figure
from benchmarks.finetune_corpus import write_pairs
from benchmarks.finetune_serving import measure_serving
from benchmarks.settings import Settings, label
from benchmarks.timing import paired_ratio
from benchmarks.worker import Worker
from hotclip_server.training.child_work import TRAINER_DEFAULTS

MINI, VIT = "builtin:mini", "ViT-B-32::"
CHECKED = 8
WORKERS = 2
"""Processes that decode for open_clip's loop; the trainer decodes on as many threads."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one model."""

    pairs: int
    batch: int
    epochs: int
    """Of a segment from files."""
    chunks: int
    """Of the figure where a batch does not fit into memory at once; 1: there is none."""


PLANS = {
    VIT: Plan(pairs=32, batch=32, epochs=3, chunks=2),
    MINI: Plan(pairs=512, batch=64, epochs=5, chunks=1),
}
OTHER = Plan(pairs=32, batch=16, epochs=2, chunks=1)
QUICK = Plan(pairs=16, batch=8, epochs=2, chunks=2)


def finetune(settings: Settings) -> Iterator[Figure]:
    """Every figure of every model.

    Raises:
        WorkerFailed: a run failed, or features are not open_clip's.
    """
    for source in settings.models or (VIT, MINI):
        plan = QUICK if settings.quick else PLANS.get(source, OTHER)
        with tempfile.TemporaryDirectory(prefix="hotclip-bench-") as name:
            write_pairs(Path(name) / "corpus", plan.pairs)
            yield from _over_open_clip(source, plan, settings, Path(name))
            yield from measure_serving(source, settings, Path(name))


def _over_open_clip(source: str, plan: Plan, settings: Settings, folder: Path) -> Iterator[Figure]:
    """Segments of both loops in turn."""
    model = label(source)
    kinds = [("decoded", 1), ("jpeg", 1), *([("decoded", plan.chunks)] if plan.chunks > 1 else [])]
    loops: tuple[Worker, Worker] | None = None
    with ExitStack() as stack:
        for kind, chunks in kinds:
            if loops is None or not settings.quick:  # what is measured has processes of its own
                stack.close()
                loops = stack.enter_context(_both_loops())
            ours, plain = loops
            told = {"corpus": str(folder / "corpus"), "device": settings.device}
            where = ours.ask(
                "load",
                {
                    **told,
                    "source": source,
                    "data_dir": str(folder / "data"),
                    "batch": plan.batch,
                    "chunk_size": -(-plan.batch // chunks),
                },
            )
            plain.ask(
                "load",
                {
                    **told,
                    "folder": where["folder"],
                    "batch": plan.batch,
                    "accumulate": chunks,
                    "workers": WORKERS,
                },
            )
            plain.ask("features", {"count": CHECKED})
            cosine = ours.ask("check", {"count": CHECKED})["min_cosine"]
            segment = {"seconds": settings.seconds, "epochs": plan.epochs}
            rates: tuple[list[float], list[float]] = ([], [])
            for turn in range(settings.rounds):
                for worker, found in zip((ours, plain), rates, strict=True):
                    found.append(worker.ask(kind, segment)["rate"])
                note(
                    f"{model} {kind} in {chunks} chunk(s) {turn + 1}/{settings.rounds}:"
                    f" {rates[0][-1]:.1f}/s, open_clip {rates[1][-1]:.1f}/s"
                )
            place = f"{kind}.{model}" if chunks == 1 else f"{kind}.{model}.{chunks}_chunks"
            yield Figure(
                name=f"training.over_open_clip.{place}",
                value=paired_ratio(*rates),
                unit="ratio",
                baseline=statistics.median(rates[1]),
                min_cosine=cosine,
            )
            yield Figure(
                name=f"training.rate.{place}",
                value=statistics.median(rates[0]),
                unit="samples/s",
                min_cosine=cosine,
            )


@contextmanager
def _both_loops() -> Iterator[tuple[Worker, Worker]]:
    """Ours and open_clip's."""
    with (
        Worker(
            "benchmarks.finetune_ours", defaults={**SERVER_DEFAULTS, **TRAINER_DEFAULTS}
        ) as ours,
        Worker("benchmarks.finetune_plain") as plain,
    ):
        yield ours, plain
