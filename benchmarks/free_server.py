"""A server whose encoder costs nothing, so that what is left is the price of a call.

The first argument is the number of its front ends. Prints its address when it serves and ends
when its standard input is closed.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import uvloop
from numpy.typing import NDArray

from hotclip_server.config import ServerConfig
from hotclip_server.encoding.protocol import Prepared, Tower
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.testing import FakeEncoder, FakeLoader, running_server

DIM = 512


class FreeEncoder(FakeEncoder):
    """The same vector for everything."""

    def encode(self, tower: Tower, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """Unit rows."""
        return np.full((len(batch), DIM), DIM**-0.5, np.float32)


class FreeLoader(FakeLoader):
    """Versions of free encoders."""

    def import_source(self, source: str) -> VersionManifest:
        """Any source is a version of its own."""
        version_id = super().import_source(source).id
        self.encoders[version_id] = FreeEncoder(source, dim=DIM)
        return self.read_manifest(version_id)


async def serve(frontends: int) -> None:
    with TemporaryDirectory(prefix="hotclip-") as folder:
        config = ServerConfig(
            port=0, device="cpu", model="fake:free", data_dir=Path(folder), frontends=frontends
        )
        async with running_server(config, loader=FreeLoader()) as server:
            print(server.address, flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]) if sys.argv[1:] else 0))
