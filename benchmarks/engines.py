"""Which engines a server answers with, by what GetServerInfo says."""

import time
from dataclasses import dataclass

from hotclip import Client

POLL_S = 0.5


class StillMeasuring(RuntimeError):
    """The server has not chosen its engines in time."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The live version and what runs it."""

    version: str
    image_size: int
    """Height and width of the model's input in pixels."""
    engines: dict[str, dict[str, str]]
    """Engine and precision by tower ("clip-text", "clip-vision")."""

    @property
    def exact(self) -> dict[str, bool]:
        """Whether a tower's answers must be as near to open_clip's as fp32 is."""
        return {name: engine["precision"] == "fp32" for name, engine in self.engines.items()}

    def engine(self, tower: str) -> str:
        """For people, e.g. "torch/bf16"."""
        return "/".join(self.engines[tower].values())

    def __str__(self) -> str:
        chosen = (f"{tower} by {self.engine(tower)}" for tower in self.engines)
        return f"version {self.version}, {', '.join(chosen)}"


def wait_for_engines(client: Client, *, seconds: float = 600.0) -> Serving:
    """Waits until the server has chosen its engines, and tells them.

    Raises:
        StillMeasuring: it had not after so many seconds.
    """
    until = time.monotonic() + seconds
    while (info := client.server_info()).measuring:
        if time.monotonic() > until:
            raise StillMeasuring(f"the server is still measuring engines after {seconds:.0f} s")
        time.sleep(POLL_S)
    live = next(version for version in info.versions if version.live)
    return Serving(
        version=live.version,
        image_size=live.image_size,
        engines={
            one.tower: {"engine": one.engine, "precision": one.precision} for one in live.engines
        },
    )
