"""What a runner is given where nothing else takes part in its jobs."""

from __future__ import annotations

from collections.abc import Callable

from hotclip_server.jobs.records import JobRecord

Warn = Callable[[str, str], None]
"""Adds a warning to the log of a job that has not ended; any thread."""


def nobody(job: JobRecord, warn: Warn) -> None:
    """Follows no job."""


async def nothing() -> None:
    """For jobs of which nobody keeps anything."""


def no_pressure() -> float:
    """For a server where nothing else wants the device."""
    return 0.0
