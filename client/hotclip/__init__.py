"""hotclip: the client of an embedding server that learns.

>>> from hotclip import Client
>>> with Client("127.0.0.1:50051") as client:
...     vectors = client.encode(["a red fox", "ein roter Fuchs"])  # (2, dim) float32
...     vectors.version, vectors.space_id
"""

from __future__ import annotations

from hotclip import errors
from hotclip._aio.client import AsyncClient
from hotclip._aio.jobs import AsyncRun
from hotclip._artifacts import Artifact, ArtifactFormat
from hotclip._bridge import Bridge
from hotclip._collections import Collection
from hotclip._dataset_file import DatasetFile
from hotclip._dataset_report import DatasetReport
from hotclip._datasets import Dataset
from hotclip._drift import CollectionDrift, CollectionNeed, DriftReport, TowerDrift
from hotclip._embeddings import Embeddings, Timings
from hotclip._feedback import Choice, FeedbackDataset, Recorded, Unused
from hotclip._filters import Between, Filter, Match
from hotclip._inputs import Image, Text
from hotclip._jobs import (
    Checkpoint,
    Example,
    Heartbeat,
    Job,
    JobEvent,
    JobKind,
    JobState,
    LogLine,
    Measurement,
    Resumed,
    StateChange,
)
from hotclip._local import LocalModel, get_model
from hotclip._models import (
    Architecture,
    Backbone,
    Gate,
    Lineage,
    Model,
    Version,
    VersionState,
)
from hotclip._pairs import BadRow, Pair
from hotclip._points import Point, Upserted, Vector
from hotclip._queries import Combined, Hit, Hits, PointId
from hotclip._ranking import Ranking, RankScore
from hotclip._resize import ImagePreprocessing
from hotclip._server import EngineInfo, Limits, ServerInfo, VersionInfo
from hotclip._shadow import Latency, ShadowTraffic
from hotclip._stored import StoredPoint
from hotclip._streaming import Encoded
from hotclip._sync.client import Client
from hotclip._sync.jobs import Run
from hotclip._uploads import UploadProgress
from hotclip.errors import HotclipError, ItemError

__all__ = [
    "Architecture",
    "Artifact",
    "ArtifactFormat",
    "AsyncClient",
    "AsyncRun",
    "Backbone",
    "BadRow",
    "Between",
    "Bridge",
    "Checkpoint",
    "Choice",
    "Client",
    "Collection",
    "CollectionDrift",
    "CollectionNeed",
    "Combined",
    "Dataset",
    "DatasetFile",
    "DatasetReport",
    "DriftReport",
    "Embeddings",
    "Encoded",
    "EngineInfo",
    "Example",
    "FeedbackDataset",
    "Filter",
    "Gate",
    "Heartbeat",
    "Hit",
    "Hits",
    "HotclipError",
    "Image",
    "ImagePreprocessing",
    "ItemError",
    "Job",
    "JobEvent",
    "JobKind",
    "JobState",
    "Latency",
    "Limits",
    "Lineage",
    "LocalModel",
    "LogLine",
    "Match",
    "Measurement",
    "Model",
    "Pair",
    "Point",
    "PointId",
    "RankScore",
    "Ranking",
    "Recorded",
    "Resumed",
    "Run",
    "ServerInfo",
    "ShadowTraffic",
    "StateChange",
    "StoredPoint",
    "Text",
    "Timings",
    "TowerDrift",
    "Unused",
    "UploadProgress",
    "Upserted",
    "Vector",
    "Version",
    "VersionInfo",
    "VersionState",
    "errors",
    "get_model",
]
