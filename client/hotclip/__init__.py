"""hotclip: the client of an embedding server that learns.

>>> from hotclip import Client
>>> with Client("127.0.0.1:50051") as client:
...     vectors = client.encode(["a red fox", "ein roter Fuchs"])  # (2, dim) float32
...     vectors.version, vectors.space_id
"""

from __future__ import annotations

from hotclip._embeddings import Embeddings
from hotclip._inputs import Image, Text
from hotclip._ranking import Ranking, RankScore
from hotclip._server import Limits, ServerInfo, VersionInfo
from hotclip._streaming import Encoded
from hotclip._sync.client import Client

__all__ = [
    "Client",
    "Embeddings",
    "Encoded",
    "Image",
    "Limits",
    "RankScore",
    "Ranking",
    "ServerInfo",
    "Text",
    "VersionInfo",
]
