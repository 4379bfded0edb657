"""Places among the calls that the vector process has not answered."""

from __future__ import annotations

from collections.abc import Callable


class Slot:
    """One place. It is given back when the answer comes, not when the caller leaves: else callers
    that give up early and ask again would fill the process with work for nobody.

    Args:
        release: Called once.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._sent = False

    def sent(self) -> None:
        """From now on it is the answer that gives it back."""
        self._sent = True

    def left(self) -> None:
        """The caller needs it no more."""
        if not self._sent:
            self._release()

    def answered(self) -> None:
        """The answer has come, or will not come."""
        self._release()
