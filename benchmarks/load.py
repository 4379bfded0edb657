"""A constant load on a server, each answer kept with when it came and which version it named."""

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from hotclip import Client


@dataclass
class Load:
    """Encodes one text after another on a thread, from `__enter__` to `__exit__`."""

    address: str
    text: str = "a photo"
    times: list[float] = field(default_factory=list)
    """Seconds on the monotonic clock at which each answer came."""
    versions: list[str] = field(default_factory=list)
    """Version that each answer named."""
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def _run(self) -> None:
        with Client(self.address) as client:
            while not self._end.is_set():
                try:
                    version = client.encode(self.text).version
                except Exception as error:  # noqa: BLE001 - a fault of the client counts as well
                    self.failures.append(f"{type(error).__name__}: {error}")
                else:
                    self.versions.append(version)
                self.times.append(time.monotonic())

    def longest_gap_ms(self) -> float:
        """Longest time between two answers, in milliseconds."""
        gaps = [late - early for early, late in zip(self.times, self.times[1:], strict=False)]
        return 1000 * max(gaps, default=0.0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
