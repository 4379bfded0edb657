"""Makes engines by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from hotclip_server.encoding.engines.eager import EagerEngine
from hotclip_server.encoding.engines.parts import PartThreads
from hotclip_server.encoding.engines.protocol import Engine, EngineChoice, EngineUnfit
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.engines.torch_engine import TorchEngine
from hotclip_server.pace import Pause, never

Build = Callable[[TowerSource, str], Engine]
"""Makes an engine in a precision; blocks, any thread. Raises EngineUnfit."""


class EngineFactory:
    """Makes the engine that a choice names.

    Args:
        more: Engines that need something long-lived, by name.
        pause: Called between pieces of making one.
        parts: Threads among which the torch engine divides large batches.
    """

    def __init__(
        self,
        more: Mapping[str, Build] | None = None,
        pause: Pause = never,
        parts: PartThreads | None = None,
    ) -> None:
        self._builds: dict[str, Build] = {
            "eager": EagerEngine,
            "torch": partial(TorchEngine, pause=pause, parts=parts),
        }
        self._builds |= more or {}

    def build(self, choice: EngineChoice, source: TowerSource) -> Engine:
        """Blocks for seconds on a big model; any thread.

        Raises:
            EngineUnfit: it can't run this tower here.
        """
        build = self._builds.get(choice.engine)
        if build is None:
            raise EngineUnfit(f"there is no engine {choice.engine!r} on this device")
        return build(source, choice.precision)
