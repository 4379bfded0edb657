"""A running registry with a fake loader and a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support.versions import FakeLoader, run_inline

from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.staging import StagingLimits
from hotclip_server.storage.database import Database

PLENTY = StagingLimits(free_bytes=lambda: 1 << 40)


@asynccontextmanager
async def running(
    folder: Path, loader: FakeLoader, limits: StagingLimits = PLENTY, source: str = "fake:a"
) -> AsyncIterator[ModelRegistry]:
    database = Database(f"sqlite:///{folder / 'hotclip.db'}")
    database.open()
    registry = ModelRegistry(database, loader, run_inline, limits)
    try:
        await registry.start("default", source)
        yield registry
    finally:
        await registry.stop()
        database.close()


async def load(registry: ModelRegistry, seed: str) -> str:
    return (await registry.load_version("", f"fake:{seed}")).id


def pinned(registry: ModelRegistry, **kwargs: Any) -> str:
    with registry.pin(**kwargs) as pin:
        return pin.resident.version_id
