"""Which trackers there are, and which of them are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec

from hotclip_server.config import ServerConfig
from hotclip_server.errors import FailedPrecondition
from hotclip_server.jobs.specs import Tracker as Name
from hotclip_server.trackers.protocol import TrackedRun, Tracker, TrackerSettings

CLASSES = {Name.TENSORBOARD: "TensorBoard", Name.WANDB: "WandB", Name.MLFLOW: "MLflow"}
"""The class of each, in a module that is named as the package that it needs."""


def is_installed(name: str) -> bool:
    """Whether the package of a tracker is there; does not import it."""
    return find_spec(name) is not None


def require_installed(
    names: Iterable[str], installed: Callable[[str], bool] = is_installed
) -> None:
    """Raises FailedPrecondition if the package of one of them is missing."""
    for name in names:
        if not installed(name):
            raise FailedPrecondition(
                f"{name} is not installed on the server: pip install 'hotclip[{name}]' there",
                reason="TRACKER_NOT_INSTALLED",
                metadata={"tracker": name},
            )


def tracker_maker(config: ServerConfig) -> Callable[[str, TrackedRun], Tracker]:
    """What begins a run of a tracker by name: it imports the package and may raise anything."""
    settings = TrackerSettings(
        folder=config.trackers_path,
        wandb_online=config.wandb_online,
        mlflow_uri=config.mlflow_uri,
    )

    def make(name: str, run: TrackedRun) -> Tracker:
        module = import_module(f"hotclip_server.trackers.{name}")
        tracker: Tracker = getattr(module, CLASSES[Name(name)])(run, settings)
        return tracker

    return make
