"""What a suite is told."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.server_process import PROGRAM

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run."""

    device: str = "cpu"
    """ "cpu", "cuda" or "cuda:<n>"."""
    models: tuple[str, ...] = ()
    """Sources of LoadVersion; empty: the suite's own."""
    contents: tuple[str, ...] = ()
    """Kinds of items; empty: all that the suite has for a model."""
    seconds: float = 10.0
    """Of one timed segment of a comparison."""
    rounds: int = 3
    """Segments of each side of a comparison."""
    runs: int = 0
    """Most models that finetune-quality makes this time; 0: all that are missing."""
    quick: bool = False
    """A few items and short segments: shows that all works, measures nothing."""
    server_options: tuple[str, ...] = ()
    """More options of the server."""
    program: tuple[str, ...] = PROGRAM
    """What is started as the server."""
    output: Path = RESULTS


def label(source: str) -> str:
    """The name of a model in figures: "ViT-B-32" of "ViT-B-32::", "mini" of "builtin:mini"."""
    return source.removeprefix("builtin:").partition("::")[0]
