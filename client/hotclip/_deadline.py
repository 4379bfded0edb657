"""The time that a call of several requests may take as a whole."""

from __future__ import annotations

import math
import time

from hotclip._channel import check_timeout
from hotclip.errors import DeadlineExceeded


class Deadline:
    """A point in time, counted from when it was made; math.inf seconds: never."""

    def __init__(self, timeout: float) -> None:
        check_timeout(timeout)
        self._timeout = timeout
        self._end = time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds left, as gRPC wants them: None if there is no end.

        Raises:
            DeadlineExceeded: None are left.
        """
        if math.isinf(self._timeout):
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"not done within {self._timeout:g} s")
        return left

    def pause(self, seconds: float) -> float:
        """As many of the seconds as are left; raises DeadlineExceeded if none are."""
        left = self.remaining()
        return seconds if left is None else min(seconds, left)
