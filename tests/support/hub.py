"""A hub on loopback, in the layout that `huggingface_hub` and `transformers` expect.

The real clients talk to it over HTTP; they find it by `HF_ENDPOINT`, which they read when
they are imported, so use it from a process started with `environment()`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub:
    """Serves `<root>/<org>/<repo>/<file>`, or `<root>/<repo>/<file>` for names without org.

    Files may be added while it runs. `requests` lists what was asked for.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # http.server's name
                hub.answer(self, send_body=True)

            def do_HEAD(self) -> None:  # http.server's name
                hub.answer(self, send_body=False)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """URL without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables for a process that shall use this hub and nothing else.

        Args:
            cache: Folder for what it downloads.
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def answer(self, request: BaseHTTPRequestHandler, *, send_body: bool) -> None:
        """One request."""
        path = unquote(urlsplit(request.path).path).strip("/")
        self.requests.append(path)
        if path.startswith("api/models/"):
            self._describe(request, path.removeprefix("api/models/"), send_body)
            return
        repo, separator, rest = path.partition("/resolve/")
        file = self.root / repo / rest.partition("/")[2]
        if not separator or not (self.root / repo).is_dir():
            _refuse(request, "RepoNotFound")
        elif not file.is_file():
            _refuse(request, "EntryNotFound")
        else:
            _send_file(request, file, send_body)

    def _describe(self, request: BaseHTTPRequestHandler, path: str, send_body: bool) -> None:
        repo, _, folder = path.partition("/tree/")
        repo = repo.partition("/revision/")[0]
        if not (self.root / repo).is_dir():
            _refuse(request, "RepoNotFound")
            return
        files = sorted(file for file in (self.root / repo).rglob("*") if file.is_file())
        names = [str(file.relative_to(self.root / repo)) for file in files]
        if not folder:
            siblings = [{"rfilename": name} for name in names]
            _send_json(request, {"id": repo, "sha": COMMIT, "siblings": siblings}, send_body)
        elif "/" in folder:  # a sub-folder; none has any
            _refuse(request, "EntryNotFound")
        else:
            entries = [{"type": "file", "path": name, "size": 0, "oid": COMMIT} for name in names]
            _send_json(request, entries, send_body)


def _refuse(request: BaseHTTPRequestHandler, code: str) -> None:
    request.send_response(404)
    request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    request.end_headers()


def _send_json(request: BaseHTTPRequestHandler, content: object, send_body: bool) -> None:
    body = json.dumps(content).encode()
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if send_body:
        request.wfile.write(body)


def _send_file(request: BaseHTTPRequestHandler, file: Path, send_body: bool) -> None:
    status = file.stat()
    name = f"{file}{status.st_size}{status.st_mtime_ns}"
    request.send_response(200)
    request.send_header("ETag", f'"{hashlib.sha256(name.encode()).hexdigest()}"')
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("Content-Length", str(status.st_size))
    request.end_headers()
    if send_body:
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                request.wfile.write(chunk)
