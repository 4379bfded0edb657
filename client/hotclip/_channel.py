"""How a channel to a server is set up: target, keep-alive, retries, message sizes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from hotclip.errors import InvalidArgument

PACKAGE = "hotclip.v1"

# Only calls that may safely run twice: reads, Encode, and creations with a request_id.
RETRIED: Mapping[str, tuple[str, ...]] = {
    f"{PACKAGE}.EncodeService": ("Encode", "Rank"),
    f"{PACKAGE}.ModelService": (
        "ListModels",
        "GetModel",
        "ListVersions",
        "GetVersion",
        "LoadVersion",
        "ActivateVersion",
        "Rollback",
        "DescribeArchitectures",
        "Export",
        "ImportVersion",
    ),
    f"{PACKAGE}.ArtifactService": ("GetArtifact", "ListArtifacts", "GetUpload"),
    f"{PACKAGE}.JobService": ("GetJob", "ListJobs", "GetJobReport"),
    f"{PACKAGE}.DatasetService": ("GetDataset", "ListDatasets"),
    f"{PACKAGE}.FineTuneService": ("FineTune", "Evaluate"),
    f"{PACKAGE}.SearchService": (
        "GetCollection",
        "ListCollections",
        "GetPoints",
        "ListPoints",
        "CountPoints",
        "Search",
        "Reindex",
    ),
    f"{PACKAGE}.FeedbackService": ("RecordFeedback", "ListFeedback"),
    f"{PACKAGE}.DriftService": (
        "CompareVersions",
        "GetDriftReport",
        "GetShadowTraffic",
        "FitBridge",
        "GetBridge",
    ),
    f"{PACKAGE}.ServerService": ("GetServerInfo",),
}
MAX_ATTEMPTS = 5
MAX_RECEIVE_BYTES = 256 << 20
# gRPC tries nothing again that is larger; by default 256 KiB, which three photographs are.
MAX_RETRIED_BYTES = 256 << 20

_SCHEMES = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:", "passthrough:")
_LOOPBACK = re.compile(r"^(dns:///)?(127\.[0-9.]+|localhost|\[::1\]):")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to reach a server and how long to wait for it."""

    address: str
    """host:port, or a gRPC target such as dns:///host:port or unix:/path."""
    timeout: float
    """Seconds that a call may take by default; math.inf: no limit."""
    wait_for_ready: bool
    """Whether calls wait for a connection instead of failing at once."""
    retries: bool
    """Whether safe calls are tried again when the server is unavailable."""
    credentials: grpc.ChannelCredentials | None
    """For TLS; None: plain text."""

    def __post_init__(self) -> None:
        if not self.address.strip():
            raise InvalidArgument.field("address", "empty; give host:port")
        check_timeout(self.timeout)

    @property
    def target(self) -> str:
        """The address as gRPC wants it: through DNS, so that round_robin sees every server."""
        known = "://" in self.address or self.address.startswith(_SCHEMES)
        return self.address if known else f"dns:///{self.address}"

    def options(self) -> list[tuple[str, str | int]]:
        """The channel's arguments."""
        options: list[tuple[str, str | int]] = [
            ("grpc.service_config", service_config(retries=self.retries)),
            ("grpc.enable_retries", int(self.retries)),
            ("grpc.per_rpc_retry_buffer_size", MAX_RETRIED_BYTES),
            ("grpc.max_send_message_length", -1),  # the server's limit is asked, not guessed
            ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]
        if _LOOPBACK.match(self.address):
            options.append(("grpc.enable_http_proxy", 0))
        return options


def service_config(*, retries: bool) -> str:
    """gRPC service config (JSON): round robin, and retries of the calls in RETRIED.

    gRPC itself honours the server's push-back (grpc-retry-pushback-ms) and stops trying
    again when too many calls fail (retryThrottling).
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries:
        names = [
            {"service": service, "method": method}
            for service, methods in RETRIED.items()
            for method in methods
        ]
        policy = {
            "maxAttempts": MAX_ATTEMPTS,
            "initialBackoff": "0.1s",
            "maxBackoff": "2s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": names, "retryPolicy": policy}]
        config["retryThrottling"] = {"maxTokens": 100, "tokenRatio": 0.5}
    return json.dumps(config)


def check_timeout(timeout: float) -> None:
    """Refuses a time that is no positive number of seconds."""
    if math.isnan(timeout) or timeout <= 0:
        raise InvalidArgument.field("timeout", f"{timeout} is not a positive number of seconds")


def backoff(attempt: int) -> float:
    """Seconds to wait before the given new attempt (from 1) to reach a server."""
    return float(min(0.1 * 2 ** (attempt - 1), 5.0))
