"""What a watcher of models gets: every revision, and the newest of what changes between two."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

from hotclip_server.errors import Unavailable
from hotclip_server.models.catalog import Catalog
from hotclip_server.models.state import ModelState
from hotclip_server.models.watch import Changes


async def watch_models(
    catalog: Catalog,
    changes: Changes,
    state: Callable[[str], ModelState],
    model: str,
    after: Mapping[str, int],
) -> AsyncGenerator[ModelState, None]:
    """See `ModelRegistry.watch`.

    Args:
        changes: Tells which models have changed.
        state: A model as it is now.
    """
    if model:
        catalog.model(model)
    with changes.subscribe() as watcher:
        names = {model} if model else set(catalog.models)
        seen = {name: after[name] for name in names if name in after}
        if model or not after:
            # These begin with what they are now, also if that is something else when their turn
            # comes. Every other model is new to this watcher, which gets all that it was.
            seen = {name: state(name).revision - 1 for name in names} | seen
        revisions = _Revisions(catalog, state, seen)
        while names:
            for name in sorted(names):
                for unseen in await revisions.unseen(name):
                    yield unseen
            names = set()
            while not names and (changed := await watcher.next()):
                names = changed & {model} if model else changed
    raise Unavailable("the server stops", reason="STOPPING")


class _Revisions:
    """Remembers the last revision of each model that a watcher got.

    Args:
        seen: Revisions by model that it has got before; of the others it has got none.
    """

    def __init__(
        self, catalog: Catalog, state: Callable[[str], ModelState], seen: Mapping[str, int]
    ) -> None:
        self._catalog = catalog
        self._state = state
        self._seen = dict(seen)

    async def unseen(self, model: str) -> list[ModelState]:
        """Every revision since that one, and the state now, which is the last."""
        state = self._state(model)
        known = self._seen.get(model, 0)
        self._seen[model] = state.revision
        if known + 1 >= state.revision:
            return [state]
        return [*await self._catalog.changes(model, known, state.revision), state]
