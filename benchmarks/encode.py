"""The suite encode: how fast texts and images become vectors, and how right those are."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cold_start import measure_cold_start
from benchmarks.encode_model import measure_model
from benchmarks.figures import Figure
from benchmarks.frontend import measure_frontend
from benchmarks.hub import loopback_hub, write_xlm_roberta
from benchmarks.settings import Settings

MINI = "builtin:mini"
MODELS = ("ViT-B-32::", MINI, "xlm-roberta-base-ViT-B-32::", "ViT-L-14::")
CUDA_MODELS = (*MODELS, "ViT-B-16::")


def encode(settings: Settings) -> Iterator[Figure]:
    """Every figure of every model; the cold start and the front end go with builtin:mini.

    Raises:
        WorkerFailed: a call failed, or an answer was not open_clip's.
    """
    models = settings.models or (MODELS if settings.device == "cpu" else CUDA_MODELS)
    with tempfile.TemporaryDirectory(prefix="hotclip-bench-") as name:
        root = Path(name)
        write_xlm_roberta(root / "hub")
        with loopback_hub(root / "hub") as environment:
            for position, source in enumerate(models):
                with tempfile.TemporaryDirectory(dir=root) as folder:
                    yield from measure_model(source, settings, Path(folder), environment)
                if source == MINI:
                    yield measure_cold_start(settings, root / "cold")
                    yield from measure_frontend(settings, root / f"frontend-{position}")
