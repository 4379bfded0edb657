"""What jobs keep on the disk to go on with: one folder a job, removed when it can't go on.

A job's folder lives as long as the job may be resumed, which is until it succeeded or was
deleted. What a crash left of other jobs is removed when the server starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path


class JobFolders:
    """Folders below `root`, by job id; every method blocks."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, job_id: str) -> Path:
        """The folder of a job; whoever writes there makes it."""
        return self._root / job_id

    def forget(self, job_id: str) -> None:
        """Removes a job's folder, if there is one."""
        shutil.rmtree(self.of(job_id), ignore_errors=True)

    def keep_only(self, job_ids: Collection[str]) -> None:
        """Removes the folders of all other jobs."""
        if self._root.is_dir():
            for folder in self._root.iterdir():
                if folder.name not in job_ids:
                    shutil.rmtree(folder, ignore_errors=True)
