"""What is aimed at, by figure and device."""

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Target:
    """A bound on a figure."""

    value: float
    at_most: bool = False

    @property
    def sign(self) -> str:
        return "≤" if self.at_most else "≥"

    def met_by(self, value: float) -> bool:
        return value <= self.value if self.at_most else value >= self.value


ANYWHERE = {
    "cold_start_s.mini": Target(3.0, at_most=True),
    "training.p99_ratio.*": Target(1.5, at_most=True),
    "training.shares_sum*": Target(0.9),
    "training.over_open_clip.decoded.mini": Target(1.4),
    "training.over_open_clip.jpeg.mini": Target(2.0),
    "search.recall_at_10": Target(0.98),
    "search.over_engine.batch64": Target(1.5, at_most=True),
    "search.added_ms.single": Target(1.5, at_most=True),
    "swap.failed*": Target(0.0, at_most=True),
    "swap.refused*": Target(0.0, at_most=True),
    "swap.mixed*": Target(0.0, at_most=True),
    "swap.linearisability_violations*": Target(0.0, at_most=True),
    "swap.p99_ratio.*": Target(1.2, at_most=True),
    "swap.memory_slope*": Target(0.02, at_most=True),
}
CPU = {
    "training.over_open_clip.*.ViT-B-32.*_chunks": Target(1.05),
    "training.over_open_clip.*.ViT-B-32": Target(1.3),
    "served_over_raw.tensor.ViT-B-32": Target(0.92),
    "served_over_raw.jpeg.ViT-B-32": Target(0.85),
    "served_over_raw.text.ViT-B-32": Target(0.85),
    "over_open_clip.jpeg_small.ViT-B-32": Target(2.2),
    "over_open_clip.jpeg_large.ViT-B-32": Target(2.5),
    "over_open_clip.text.ViT-B-32": Target(8.0),
    "latency.p99_added_over_batch.*": Target(6.0, at_most=True),
    "over_infinity.jpeg_small.8x1": Target(2.5),
    "over_infinity.jpeg_small.4x16": Target(2.0),
    "over_infinity.text.8x1": Target(4.0),
    "over_infinity.text.4x16": Target(2.0),
    "over_clip-as-service.jpeg_small.8x1": Target(3.5),
    "over_clip-as-service.jpeg_small.4x16": Target(2.0),
    "over_clip-as-service.text.8x1": Target(8.0),
    "over_clip-as-service.text.4x16": Target(8.0),
    "german.mrr_ratio.replay": Target(3.0),
    "black.mrr_ratio.replay": Target(1.5),
    "retained.hit10_loss.*.least": Target(2.0, at_most=True),
    "retained.hit10_loss.*.replay": Target(2.0, at_most=True),
}
CUDA = {
    "training.over_open_clip.decoded.*": Target(1.4),
    "training.over_open_clip.jpeg.*": Target(2.0),
    "latency.p99_added_over_batch.*": Target(3.0, at_most=True),
    "over_infinity.jpeg_small.*": Target(10.0),
    "over_infinity.text.*": Target(5.0),
    "over_clip-as-service.jpeg_small.*": Target(10.0),
    "over_clip-as-service.text.*": Target(20.0),
}
H100 = {
    "served_over_raw.tensor.ViT-L-14": Target(0.95),
    "served_over_raw.tensor.ViT-B-16": Target(0.90),
    "served_over_raw.tensor.ViT-B-32": Target(0.75),
    "served_over_raw.jpeg.ViT-L-14": Target(0.95),
    "served_over_raw.jpeg.ViT-B-16": Target(0.80),
    "served_over_raw.jpeg.ViT-B-32": Target(0.45),
}


def target_of(figure: str, device: str) -> Target | None:
    """The target of a figure on a device, by its maker's name ("cpu" for a processor)."""
    if device == "cpu":
        tables = [ANYWHERE, CPU]
    else:
        tables = [ANYWHERE, CUDA, *([H100] if "H100" in device else [])]
    for targets in tables:
        for pattern, target in targets.items():
            if fnmatchcase(figure, pattern):
                return target
    return None
