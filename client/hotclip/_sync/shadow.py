"""Shadow traffic; methods of Client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotclip import _shadow as parse
from hotclip._message import made
from hotclip._shadow import ShadowTraffic
from hotclip_proto.v1 import drift_pb2

if TYPE_CHECKING:
    from hotclip._sync.client import Client


def set_shadow_traffic(
    self: Client,
    version: str,
    *,
    share: float,
    lifetime_s: float | None = None,
    model: str = "",
    timeout: float | None = None,
) -> ShadowTraffic:
    """From now on copies a share of the requests that the live version answers to a version.

    Copies run after the answer, beside requests, and are dropped and counted when requests
    wait. Replaces what was set for the model; ends by itself, and when
    another version goes live.

    Args:
        version: Is made resident and kept so.
        share: Of the requests, above 0, at most 1.
        lifetime_s: Seconds until it ends, 1 to 604,800; None: 3,600.
        model: Name of the model; empty: "default".
        timeout: Seconds; None: the client's default.

    Raises:
        NotFound: No such model or version.
        FailedPrecondition: The version can't serve.
    """
    connection = self._connection
    request = made(
        drift_pb2.SetShadowTrafficRequest,
        model=model,
        version=version,
        share=share,
        lifetime_s=lifetime_s,
    )
    stub = connection.stubs().drift
    reply = connection.call(stub.SetShadowTraffic, request, connection.deadline(timeout))
    return parse.shadow_traffic(reply)


def shadow_traffic(self: Client, *, model: str = "", timeout: float | None = None) -> ShadowTraffic:
    """What shadow traffic goes on, or was the last, and what it has shown.

    Args:
        model: Name of the model; empty: "default".
        timeout: Seconds; None: the client's default.

    Raises:
        NotFound: There was none since the server started.
    """
    connection = self._connection
    request = made(drift_pb2.GetShadowTrafficRequest, model=model)
    stub = connection.stubs().drift
    reply = connection.call(stub.GetShadowTraffic, request, connection.deadline(timeout))
    return parse.shadow_traffic(reply)


def clear_shadow_traffic(
    self: Client, *, model: str = "", timeout: float | None = None
) -> ShadowTraffic:
    """Ends shadow traffic; gives its last figures.

    Args:
        model: Name of the model; empty: "default".
        timeout: Seconds; None: the client's default.

    Raises:
        NotFound: There was none since the server started.
    """
    connection = self._connection
    request = made(drift_pb2.ClearShadowTrafficRequest, model=model)
    stub = connection.stubs().drift
    reply = connection.call(stub.ClearShadowTraffic, request, connection.deadline(timeout))
    return parse.shadow_traffic(reply)
