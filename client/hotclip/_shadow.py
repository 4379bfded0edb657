"""Shadow traffic, as the caller sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hotclip._drift import TowerDrift, towers
from hotclip._jobs import when
from hotclip_proto.v1 import drift_pb2


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Microseconds on the device; the mean of all, percentiles of the last 4,096."""

    count: int
    mean_us: float
    p50_us: float
    p95_us: float
    p99_us: float


@dataclass(frozen=True, kw_only=True)
class ShadowTraffic:
    """Requests that also ran on a second version, and what that has shown."""

    model: str
    version: str
    """That requests are copied to."""
    base_version: str
    """That answers."""
    share: float
    create_time: datetime | None
    expire_time: datetime | None
    end_reason: str
    """EXPIRED, CLEARED, REPLACED, UNLOADED, or NOT_LIVE: another version than base_version went
    live; empty while it goes on."""
    requests: int
    """That base_version answered since it was set."""
    copied: int
    compared: int
    """Copies that ran to their end."""
    dropped: Mapping[str, int]
    """Copies by reason: BUSY, PRESSURE, LATE, ENDED, TOO_LARGE, or that of an error."""
    failed: Mapping[str, int]
    """Items that only base_version encodes, by reason."""
    towers: Mapping[str, TowerDrift]
    """Cosines of answer and copy by name of the tower."""
    live: Latency
    """Of requests that were copied as a whole."""
    shadow: Latency
    """Of their copies. Several images of a request are copied one by one: compare those of
    requests with one item."""

    @property
    def active(self) -> bool:
        """Whether it goes on."""
        return not self.end_reason


def shadow_traffic(message: drift_pb2.ShadowTraffic) -> ShadowTraffic:
    """Parses shadow traffic."""
    return ShadowTraffic(
        model=message.model,
        version=message.version,
        base_version=message.base_version,
        share=message.share,
        create_time=when(message.create_time),
        expire_time=when(message.expire_time),
        end_reason=message.end_reason,
        requests=message.requests,
        copied=message.copied,
        compared=message.compared,
        dropped=dict(message.dropped),
        failed=dict(message.failed),
        towers=towers(message.towers),
        live=_latency(message.live),
        shadow=_latency(message.shadow),
    )


def _latency(message: drift_pb2.Latency) -> Latency:
    return Latency(
        count=message.count,
        mean_us=message.mean_us,
        p50_us=message.p50_us,
        p95_us=message.p95_us,
        p99_us=message.p99_us,
    )
