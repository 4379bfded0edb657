"""The suites, each a module, and what is done with the figures of any of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.encode import encode
from benchmarks.figures import Figure, added_to, judged, table, write_figures
from benchmarks.finetune import finetune
from benchmarks.finetune_quality import finetune_quality
from benchmarks.machine import describe_machine, device_name, slug
from benchmarks.search import search
from benchmarks.settings import Settings
from benchmarks.swap import swap

Suite = Callable[[Settings], Iterator[Figure]]
SUITES: dict[str, Suite] = {
    "encode": encode,
    "finetune": finetune,
    "finetune-quality": finetune_quality,
    "search": search,
    "swap": swap,
}


def run_suite(suite: str, settings: Settings) -> Path:
    """Runs a suite, prints its table and writes its figures; tells where.

    Raises:
        WorkerFailed: a call failed, or an answer was wrong.
    """
    device = device_name(settings.device)
    figures = [judged(figure, device) for figure in SUITES[suite](settings)]
    machine = {
        **describe_machine(settings.device),
        "models": list(settings.models),
        "contents": list(settings.contents),
        "seconds": settings.seconds,
        "rounds": settings.rounds,
        "quick": settings.quick,
        "server_options": list(settings.server_options),
    }
    path = settings.output / f"{suite}.{slug(device)}.json"
    if settings.models or settings.contents:
        machine, figures = added_to(path, machine, figures)
    write_figures(path, machine, figures)
    print(table(figures, device))
    return path
