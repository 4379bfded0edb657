"""Images decoded ahead of their use, on threads, in moments in which nobody waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from torch import Tensor

THREADS = 2


class Ahead:
    """Its threads end when nothing is left to do, or when somebody waits, and begin again when it
    is asked: there is nothing to close. Its methods are for one thread.

    They are no daemons, which the end of the interpreter would break off in the middle of a
    decoder, and the process with them ("terminate called"). A process that ends waits for the
    images that are under way and for no more.

    Args:
        decode: Gives an image by number; called on several threads.
        waits: Whether others should go first; called on several threads. No image is begun then.
    """

    def __init__(self, decode: Callable[[int], Tensor], waits: Callable[[], bool]) -> None:
        self._decode, self._waits = decode, waits
        self._lock = threading.Lock()
        self._coming: dict[int, Future[Tensor]] = {}
        self._due: deque[int] = deque()
        """Numbers that nobody has begun, in order, and some that were taken since."""
        self._threads = 0

    def want(self, numbers: Iterable[int]) -> None:
        """Begins with these, in their order; forgets what was wanted before."""
        with self._lock:
            known = self._coming
            self._coming = {number: known.get(number) or Future() for number in numbers}
            self._due = deque(n for n, future in self._coming.items() if _is_due(future))
        self._begin()

    def take(self, number: int) -> Tensor | None:
        """What was decoded, or soon will be; None if nobody has begun: then nobody will. Raises
        what `decode` raises."""
        with self._lock:
            found = self._coming.pop(number, None)
            begun = found is not None and not found.cancel()
        self._begin()
        return found.result() if found is not None and begun else None

    def _begin(self) -> None:
        """As many threads as there is work for, if nobody waits."""
        with self._lock:
            due = 0 if self._waits() else len(self._due)
            new = max(0, min(THREADS, due) - self._threads)
            self._threads += new
        for _ in range(new):
            threading.Thread(target=self._work, name="hotclip-decode", daemon=False).start()

    def _work(self) -> None:
        while (due := self._next()) is not None:
            number, future = due
            try:
                future.set_result(self._decode(number))
            except Exception as error:  # noqa: BLE001 - belongs to who takes it
                future.set_exception(error)

    def _next(self) -> tuple[int, Future[Tensor]] | None:
        """What to decode now; None: the thread ends."""
        with self._lock:
            while self._due and threading.main_thread().is_alive() and not self._waits():
                number = self._due.popleft()
                future = self._coming.get(number)
                if future is not None:
                    future.set_running_or_notify_cancel()
                    return number, future
            self._threads -= 1
            return None


def _is_due(future: Future[Tensor]) -> bool:
    return not (future.running() or future.done())
