"""What a version must have reached in measurements before it may go live."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from hotclip_server.errors import FailedPrecondition, NotFound
from hotclip_server.jobs.records import JobKind
from hotclip_server.jobs.states import JobState
from hotclip_server.storage.schema import datasets, jobs, versions

_OF_THE_VERSION = frozenset({"version", "base_version", "alphas"})
"""Settings of an evaluation that do not change what it measures of the version itself."""


@dataclass(frozen=True, kw_only=True)
class MetricGate:
    """A bound on one metric; every bound that is given must hold."""

    metric: str
    """As evaluations name it."""
    dataset: str = ""
    """Id or name: the newest evaluation on it counts. Empty: what was measured when the version
    was made."""
    at_least: float | None = None
    at_most: float | None = None
    live_margin: float | None = None
    """By how much it may be worse than the live version in an evaluation with the same
    settings."""
    higher_is_better: bool = True
    """What "worse" means."""


class Gates:
    """Implements `FlipParticipant`: looks in the flip's own transaction, so that what it compares
    with is what is replaced."""

    def __init__(self, gates: Sequence[MetricGate]) -> None:
        self._gates = tuple(gates)

    def flip(
        self,
        connection: Connection,
        model: str,
        old_version: str,
        new_version: str,
        collections: Sequence[str],
    ) -> Callable[[], None]:
        """Vetoes what does not pass; see `check`."""
        self.check(connection, old_version, new_version)
        return _nothing

    def release(self, connection: Connection, model: str, version: str) -> Callable[[], None]:
        """Keeps nothing."""
        return _nothing

    def check(self, connection: Connection, live: str, version: str) -> None:
        """
        Args:
            live: Version id; empty if none is.

        Raises:
            NotFound: no such dataset, reason DATASET_NOT_FOUND, or version, reason
                VERSION_NOT_FOUND.
            FailedPrecondition: something is not measured, reason GATE_NOT_MEASURED, or a bound
                is not reached, reason GATE_NOT_REACHED.
        """
        for gate in self._gates:
            value, settings = _measured(connection, gate, version)
            if gate.at_least is not None and not value >= gate.at_least:
                raise _not_reached(gate, version, value, f"at least {gate.at_least:g}")
            if gate.at_most is not None and not value <= gate.at_most:
                raise _not_reached(gate, version, value, f"at most {gate.at_most:g}")
            if gate.live_margin is not None and live and live != version:
                theirs, _ = _measured(connection, gate, live, settings)
                worse = theirs - value if gate.higher_is_better else value - theirs
                if not worse <= gate.live_margin:
                    wanted = f"{theirs:g} of the live version {live} within {gate.live_margin:g}"
                    raise _not_reached(gate, version, value, wanted)


def _measured(
    connection: Connection,
    gate: MetricGate,
    version: str,
    settings: Mapping[str, Any] | None = None,
) -> tuple[float, Mapping[str, Any]]:
    """A metric of a version, and the settings of the evaluation that it is from.

    Args:
        settings: Only an evaluation with these counts.
    """
    if gate.dataset:
        evaluations = _evaluations(connection, _dataset_id(connection, gate.dataset), version)
    else:
        kept = connection.execute(
            sa.select(versions.c.metrics).where(versions.c.id == version)
        ).scalar_one_or_none()
        if kept is None:  # Deleted since the caller's request was looked at.
            raise NotFound(f"version: there is no version {version!r}", reason="VERSION_NOT_FOUND")
        evaluations = [(kept, {})]
    for metrics, told in evaluations:
        if gate.metric in metrics and settings in (None, told):
            return float(metrics[gate.metric]), told
    where = f" on dataset {gate.dataset}" if gate.dataset else ""
    alike = " with the settings of the other's evaluation" if settings is not None else ""
    raise FailedPrecondition(
        f"{gate.metric} of version {version} is not measured{where}{alike}",
        reason="GATE_NOT_MEASURED",
        metadata={"metric": gate.metric, "version": version, "dataset": gate.dataset},
    )


def _evaluations(
    connection: Connection, dataset: str, version: str
) -> list[tuple[Mapping[str, float], Mapping[str, Any]]]:
    """Metrics and settings of the evaluations of a version on a dataset, newest first."""
    rows = connection.execute(
        sa.select(jobs.c.metrics, jobs.c.spec)
        .where(
            jobs.c.kind == JobKind.EVALUATE.value,
            jobs.c.state == JobState.SUCCEEDED.value,
            jobs.c.spec["version"].as_string() == version,
            jobs.c.spec["dataset"].as_string() == dataset,
        )
        .order_by(jobs.c.end_time.desc(), jobs.c.id)
    )
    return [
        (row.metrics, {k: v for k, v in row.spec.items() if k not in _OF_THE_VERSION})
        for row in rows
    ]


def _dataset_id(connection: Connection, dataset: str) -> str:
    found = connection.execute(
        sa.select(datasets.c.id).where(sa.or_(datasets.c.id == dataset, datasets.c.name == dataset))
    ).scalar()
    if found is None:
        raise NotFound(f"no dataset {dataset!r}", reason="DATASET_NOT_FOUND")
    return str(found)


def _not_reached(gate: MetricGate, version: str, value: float, wanted: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{gate.metric} of version {version} is {value:g}, it must be {wanted}",
        reason="GATE_NOT_REACHED",
        metadata={"metric": gate.metric, "version": version, "value": repr(value)},
    )


def _nothing() -> None:
    """A gate changes nothing."""
