"""Fetching images from a real web server that misbehaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from hotclip import Image
from hotclip.errors import InvalidArgument

REDIRECTS = {
    "/file": "file:///etc/passwd",
    "/ftp": "ftp://127.0.0.1/x",
    "/loop": "/loop",
    "/nonsense": "http://[",
    "/endless": "/picture",
}


@pytest.fixture
def web() -> Iterator[SimpleNamespace]:
    """`url` of the server, and `refused`: set when somebody hung up on an endless answer."""
    refused = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path in REDIRECTS else 200)
            if self.path in REDIRECTS:
                self.send_header("Location", REDIRECTS[self.path])
            if self.path == "/short":
                self.send_header("Content-Length", "100")
            self.end_headers()
            if self.path in {"/endless", "/large"}:
                try:
                    for _ in range(256):
                        self.wfile.write(bytes(1 << 20))
                except OSError:
                    refused.set()
            elif self.path not in REDIRECTS:
                self.wfile.write(b"picture")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", refused=refused)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/file", "/ftp", "/loop", "/nonsense", "/short", "/large"])
def test_what_is_no_picture_is_refused(web: SimpleNamespace, path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Image.from_url(web.url + path).load()
    assert caught.value.reason == "IMAGE_UNREADABLE"


def test_the_body_of_a_redirect_is_not_read(web: SimpleNamespace) -> None:
    assert Image.from_url(f"{web.url}/endless").load().image == b"picture"
    assert web.refused.wait(5)
