"""Where front ends listen, and where the device process listens for them."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

LONGEST_SOCKET_PATH = 100
"""Bytes; the kernel takes 107."""


def private_folder(data_dir: Path) -> Path:
    """A new folder that only this user enters; elsewhere if the path would be too long for a
    socket."""
    folder = (data_dir / "frontends").resolve()
    if len(os.fsencode(folder)) + len("/device") > LONGEST_SOCKET_PATH:
        return Path(tempfile.mkdtemp(prefix="hotclip-"))
    shutil.rmtree(folder, ignore_errors=True)  # of a server that was killed
    folder.mkdir(mode=0o700)
    return folder


def reserve(host: str, port: int) -> tuple[socket.socket, str]:
    """Takes a port that several processes will listen on.

    Returns:
        The socket that keeps the port, and "host:port".

    Raises:
        OSError: the address is taken or not of this machine.
    """
    name = f"[{host}]" if ":" in host else host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # Fails also if others share the port: they would take half of the connections.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = probe.getsockname()
        kept = socket.socket(family, kind, protocol)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
    except OSError as error:
        raise OSError(f"can't listen on {name}:{port}: {error}") from None
    return kept, f"{name}:{kept.getsockname()[1]}"
