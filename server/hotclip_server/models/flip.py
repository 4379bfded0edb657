"""What takes part in a flip besides the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sqlalchemy import Connection


class FlipParticipant(Protocol):
    """Something that must change together with the live version, e.g. collections."""

    def flip(
        self,
        connection: Connection,
        model: str,
        old_version: str,
        new_version: str,
        collections: Sequence[str],
    ) -> Callable[[], None]:
        """Does the durable part inside the flip's own transaction; on the database's thread.

        Called for activations and rollbacks, also when `old_version` and `new_version` are
        the same; may be called for a trial whose transaction is rolled back.

        Args:
            old_version: Empty if no version was live.
            collections: Shadows to put live; empty: all that are complete for `new_version`.

        Returns:
            The other part; it must not fail. It runs on the event loop after the commit, in
            the same step as the flip.

        Raises:
            FailedPrecondition: a veto; nothing changes.
        """

    def release(self, connection: Connection, model: str, version: str) -> Callable[[], None]:
        """Lets go of what is kept for a rollback to `version`: there will be none.

        In the transaction that forgets the rollback target; never a veto.

        Returns:
            As `flip`.
        """
