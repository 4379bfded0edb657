"""Shadow traffic of a model: what was set, and what it has shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from hotclip_server.drift.figures import Figures
from hotclip_server.encoding.protocol import Tower

MOST_ITEMS = 64
"""Of a copy: the first ones of a longer request."""
BUSY, PRESSURE, LATE, ENDED = "BUSY", "PRESSURE", "LATE", "ENDED"
TOO_LARGE = "TOO_LARGE"
"""Why copies are dropped: too many are in line, requests wait, requests went before too long,
shadow traffic has ended, a front end would have to hand over too much. Or the reason of an error
of the copy as a whole."""
EXPIRED, CLEARED, REPLACED, UNLOADED = "EXPIRED", "CLEARED", "REPLACED", "UNLOADED"
NOT_LIVE = "NOT_LIVE"
"""Why shadow traffic has ended: in time, by hand, by another one, because its version went away,
because another version than the one that it is compared with went live."""


@dataclass
class Shadow:
    """Times are in UTC."""

    model: str
    version: str
    base_version: str
    """What answers: requests that another version answers are not copied."""
    share: float
    create_time: datetime
    expire_time: datetime
    end_reason: str = ""
    """Empty while it goes on."""
    requests: int = 0
    """That the base version answered."""
    copied: int = 0
    """Taken into the line or dropped at once; of them the share was drawn."""
    compared: int = 0
    """Copies that ran to their end."""
    dropped: Counter[str] = field(default_factory=Counter)
    """The other copies by reason, but for those in line."""
    failed: Counter[str] = field(default_factory=Counter)
    """Items that failed on the version and not on the base, by reason."""
    cosines: dict[Tower, Figures] = field(default_factory=lambda: {t: Figures() for t in Tower})
    """Of the answer and the copy, an item each."""
    live_us: Figures = field(default_factory=Figures)
    """Microseconds on the device: of the batches that a copied request ran in."""
    shadow_us: Figures = field(default_factory=Figures)
    """Likewise of the copy."""


def holder_of(model: str) -> str:
    """Keeps the version in memory that requests of a model are copied to."""
    return f"shadow-traffic:{model}"
