"""A registry of one fake version."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.registry import running
from support.versions import FakeLoader

from hotclip_server.models.registry import ModelRegistry


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
async def registry(tmp_path: Path, loader: FakeLoader) -> AsyncIterator[ModelRegistry]:
    async with running(tmp_path, loader) as registry:
        yield registry
