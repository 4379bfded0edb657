"""When to connect again after a broken stream, and when to give up."""

from __future__ import annotations

from dataclasses import dataclass

from hotclip._channel import backoff
from hotclip.errors import Cancelled, HotclipError, Unavailable


@dataclass
class Attempts:
    """Counts attempts that brought nothing; progress forgets them.

    With the pauses of `backoff` the default gives a server about 40 s to come back.
    """

    most: int = 12
    failed: int = 0

    def progressed(self) -> None:
        """Something arrived: the next failure is the first again."""
        self.failed = 0

    def pause(self, error: HotclipError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            HotclipError: `error`, if it is none that passes, or too many attempts failed.
        """
        passing = isinstance(error, Unavailable | Cancelled) and error.reason != "CLIENT_CLOSED"
        if not passing or self.failed >= self.most:
            raise error
        self.failed += 1
        return max(backoff(self.failed), error.retry_after or 0.0)

    def ended(self) -> float:
        """As `pause`, after a server ended a stream early but in good order."""
        return self.pause(Unavailable("the server ended the stream", reason="STREAM_ENDED"))
