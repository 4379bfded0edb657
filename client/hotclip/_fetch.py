"""Fetching an image behind a URL: http and https only, bounded in size and time."""

from __future__ import annotations

import http.client
from typing import IO, Any
from urllib import error, parse, request

from hotclip.errors import InvalidArgument


def fetch(url: str, *, max_bytes: int, timeout: float) -> bytes:
    """The body behind a URL.

    Args:
        url: http or https; redirects are followed to http and https only.
        max_bytes: A longer body is refused.
        timeout: Seconds without a byte after which it fails.

    Raises:
        InvalidArgument: Not such a URL, not reachable, not 200, or too long
            (reason IMAGE_UNREADABLE).
    """
    try:
        if parse.urlsplit(url).scheme not in {"http", "https"}:
            raise _unreadable(f"{url}: only http and https URLs are fetched")
        with _opener().open(url, timeout=timeout) as reply:
            body: bytes = reply.read(max_bytes + 1)
            if len(body) <= max_bytes and reply.length:
                raise _unreadable(f"{url}: ended {reply.length} bytes early")
    except InvalidArgument:
        raise
    except (OSError, ValueError, http.client.HTTPException) as problem:
        if isinstance(problem, error.HTTPError):
            problem.close()
        told = problem.reason if isinstance(problem, error.URLError) else problem
        raise _unreadable(f"{url}: {told}") from problem
    if len(body) > max_bytes:
        raise _unreadable(f"{url}: longer than {max_bytes} bytes")
    return body


class _Redirects(request.HTTPRedirectHandler):
    """Follows without reading the body of the redirect, which may be of any size."""

    def http_error_302(
        self,
        req: request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
    ) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> request.OpenerDirector:
    # Built by hand: urllib's default opener also reads file: and ftp: URLs.
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        _Redirects(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _unreadable(problem: str) -> InvalidArgument:
    return InvalidArgument.field("image", problem, reason="IMAGE_UNREADABLE")
