"""MLflow: a SQLite file that `mlflow ui` shows, or a tracking server."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from hotclip_server.trackers.protocol import Outcome, TrackedRun, TrackerSettings

EXPERIMENT = "hotclip"
JOB = "hotclip.job"
LONGEST_PARAM, MOST_PARAMS = 6000, 100
"""Limits of MLflow."""
STATUS = {"SUCCEEDED": "FINISHED", "FAILED": "FAILED"}


class MLflow:
    """Implements `Tracker`; a job that is resumed goes on as the same run."""

    def __init__(self, run: TrackedRun, settings: TrackerSettings) -> None:
        uri = settings.mlflow_uri
        if not uri:
            settings.folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{(settings.folder / 'mlflow.db').resolve()}"
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(settings)
        known = self._client.search_runs([experiment], f"tags.`{JOB}` = '{run.id}'", max_results=1)
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {JOB: run.id, "hotclip.model": run.model, "mlflow.note.content": run.description}
        made = self._client.create_run(experiment, run_name=run.name, tags=tags)
        self._run = made.info.run_id
        params = [Param(name, value[:LONGEST_PARAM]) for name, value in run.settings.items()]
        self._client.log_batch(self._run, params=list(islice(params, MOST_PARAMS)))

    def metrics(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """See `Tracker`."""
        stamp = int(time * 1000)
        told = [Metric(_name(name), value, stamp, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=told)

    def rewind(self, step: int) -> bool:
        """See `Tracker`: what is in its history stays there."""
        return False

    def close(self, outcome: Outcome) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._run, STATUS.get(outcome, "KILLED"))

    def _experiment(self, settings: TrackerSettings) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            place = None if settings.mlflow_uri else (settings.folder / "mlflow").resolve().as_uri()
            try:
                return str(self._client.create_experiment(EXPERIMENT, artifact_location=place))
            except MlflowException:
                found = self._client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
        return str(found.experiment_id)


def _name(name: str) -> str:
    """MLflow takes letters, digits and "_-. /:"."""
    return "".join(c if c.isalnum() or c in "_-. /:" else "_" for c in name)
