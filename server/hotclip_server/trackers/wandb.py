"""Weights & Biases: files that `wandb sync` sends later, or its server right away."""

from __future__ import annotations

from collections.abc import Mapping

import wandb

from hotclip_server.trackers.protocol import Outcome, TrackedRun, TrackerSettings

PROJECT = "hotclip"


class WandB:
    """Implements `Tracker`; a job that is resumed goes on as the same run."""

    def __init__(self, run: TrackedRun, settings: TrackerSettings) -> None:
        settings.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            id=run.id,
            name=run.name,
            notes=run.description or None,
            group=run.model,
            config=dict(run.settings),
            dir=str(settings.folder),
            mode="online" if settings.wandb_online else "offline",
            resume="allow",
            reinit="create_new",
            # About the job alone: nothing of the server's output, code or machine.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        # W&B's own step only rises, but a resumed job tells some steps again.
        for prefix in ("train", "epoch", "best", "alpha"):
            self._run.define_metric(f"{prefix}/step")
            self._run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")

    def metrics(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """See `Tracker`."""
        prefix = next(iter(values)).partition("/")[0]
        self._run.log({**values, f"{prefix}/step": step})

    def rewind(self, step: int) -> bool:
        """See `Tracker`: what is in its history stays there."""
        return False

    def close(self, outcome: Outcome) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if outcome == "SUCCEEDED" else 1)
