"""`python -m hotclip_server.testing_frontend`: a front end of `testing.running_server`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hotclip_server.config import ServerConfig
from hotclip_server.frontends.app import main
from hotclip_server.testing import FakeEncoder


def load(facts: Mapping[str, Any], config: ServerConfig) -> FakeEncoder:
    """Takes no time."""
    return FakeEncoder(**facts["preparation"])


if __name__ == "__main__":
    main(load)
