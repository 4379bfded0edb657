"""The server's configuration: one dataclass from which flags, environment, file and help derive.

Flags win over the environment (HOTCLIP_*), which wins over the TOML file (--config), which
wins over the defaults.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

LARGEST_INT32, LARGEST_UINT32 = (1 << 31) - 1, (1 << 32) - 1
"""What gRPC takes as an option, and what GetServerInfo tells in 32 bits."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ConfigError(ValueError):
    """Wrong settings; `problems` maps each field to what is wrong with it."""

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
        self.problems = problems


Check = Callable[[Any], str]
"""Gives what is wrong with a value; empty: nothing."""


def _at_least(least: float) -> Check:
    return lambda value: (
        "" if least <= value < math.inf else f"must be finite and at least {least}, is {value}"
    )


def _within(least: int, most: int) -> Check:
    return lambda value: (
        "" if least <= value <= most else f"must be within {least} and {most}, is {value}"
    )


def _one_of(*choices: str) -> Check:
    return lambda value: (
        "" if value in choices else f"must be one of {', '.join(choices)}, is {value!r}"
    )


def _matching(pattern: str, meaning: str) -> Check:
    return lambda value: "" if re.fullmatch(pattern, value) else f"must be {meaning}, is {value!r}"


def _device(value: str) -> str:
    good = re.fullmatch(r"auto|cpu|cuda(:\d+)?", value)
    return "" if good else f"must be auto, cpu, cuda or cuda:<n>, is {value!r}"


def _vectors_url(value: str) -> str:
    form = r"https?://(\[[0-9a-fA-F:]+\]|[\w.-]+)(:\d+)?(/[^\s?#@]*)?"
    # The value is not shown: it may hold a password.
    good = not value or re.fullmatch(form, value)
    return "" if good else "must be http(s)://host:port without user, password and query"


def _port(value: int) -> str:
    return "" if 0 <= value <= 65535 else f"must be within 0 and 65535, is {value}"


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of a server.

    Raises:
        ConfigError: names every bad field and the reason.
    """

    host: Annotated[str, _matching(r"\S+", "a host name or address")] = "127.0.0.1"
    """Address to listen on. Other than loopback only together with --insecure."""
    port: Annotated[int, _port] = 50051
    """Port to listen on; 0 takes a free one, which the log names."""
    insecure: bool = False
    """Listen without encryption and without authentication on an address that others reach."""
    data_dir: Path = Path("hotclip-data")
    """Folder of everything that the server keeps: versions, datasets, jobs, vectors."""
    models_dir: Path | None = None
    """Folder of models named by local:<name>; default: models below the data directory."""
    database_url: str = ""
    """SQLAlchemy URL of the metadata; default: a SQLite file below the data directory."""
    vectors_url: Annotated[str, _vectors_url] = ""
    """Qdrant server that keeps the vectors of collections, e.g. https://vectors.example:6333; needs
    pip install 'hotclip[qdrant]'. Default: below the data directory. After a change, collections
    are filled anew from what they were made of."""
    vectors_api_key: str = field(default="", repr=False)
    """API key of that server; better set as HOTCLIP_VECTORS_API_KEY than as a flag, which every
    user of the machine sees."""
    model: Annotated[str, _matching(r"\S+", "a source, e.g. builtin:mini")] = "builtin:mini"
    """What a fresh data directory serves as model "default": builtin:mini,
    <open_clip architecture>::<pretrained tag>, hf-hub:<org>/<repo> or local:<name>. Later the
    version that was activated last is served."""
    allow_random_weights: bool = False
    """Accept <architecture>:: without a tag, which means random weights (for tests)."""
    device: Annotated[str, _device] = "auto"
    """Where the model runs: auto (CUDA if there is one), cpu, cuda or cuda:<n>."""
    engine: Annotated[str, _one_of("auto", "eager", "torch", "onnx", "cuda")] = "auto"
    """What runs the model: auto (the fastest that gives open_clip's embeddings), eager (plain
    open_clip), torch, onnx or cuda."""
    precision: Annotated[str, _one_of("auto", "fp32", "bf16", "fp16", "int8")] = "auto"
    """Arithmetic of the engine: auto (bf16 or fp16 where it keeps the embeddings), fp32, bf16,
    fp16 or int8; where the engine does not keep them, plain open_clip runs in fp32."""
    threads: Annotated[int, _at_least(0)] = 0
    """CPU threads of one batch or training step; 0: one a core."""
    frontends: Annotated[int, _within(0, 256)] = 0
    """Processes that take calls, decode images and tokenise texts, for machines of many cores;
    0: the process that runs the model does that too. Each connection is taken by one of them, so
    clients should be many, or have several connections each."""
    prepare_threads: Annotated[int, _at_least(0)] = 0
    """Threads that decode images and tokenise texts, of each front end if there are any; 0: one
    a core."""
    max_batch: Annotated[int, _at_least(0)] = 0
    """Items that run together on the device at most; 0: as many as the engine does best."""
    log_level: Annotated[str, _one_of("debug", "info", "warning", "error")] = "info"
    """Least severity that is logged: debug, info, warning or error."""
    log_format: Annotated[str, _one_of("text", "json")] = "text"
    """Log lines for people (text) or one JSON object a line (json)."""
    max_message_bytes: Annotated[int, _within(64 * KIB, LARGEST_INT32)] = 16 * MIB
    """Bytes of one gRPC message, either way."""
    max_items_per_request: Annotated[int, _within(1, LARGEST_UINT32)] = 1024
    """Items of one Encode, Rank or Upsert."""
    max_text_bytes: Annotated[int, _within(1, LARGEST_UINT32)] = 8 * KIB
    """UTF-8 bytes of one text."""
    max_image_bytes: Annotated[int, _at_least(1)] = 20 * MIB
    """Bytes of one encoded image."""
    max_image_pixels: Annotated[int, _at_least(1)] = 50_000_000
    """Pixels of one image; read from its header before decoding."""
    max_queue_items: Annotated[int, _within(1, LARGEST_UINT32)] = 20_000
    """Items that may wait to be encoded; beyond, requests are refused with UNAVAILABLE."""
    max_queue_bytes: Annotated[int, _at_least(1 * MIB)] = 512 * MIB
    """Bytes that may wait to be encoded."""
    cache_bytes: Annotated[int, _at_least(0)] = 0
    """Bytes of memory for features of texts and images that come again; 0: none are kept."""
    max_stream_in_flight: Annotated[int, _within(1, LARGEST_UINT32)] = 16
    """Requests of one EncodeStream that may be unanswered."""
    max_concurrent_streams: Annotated[int, _within(1, LARGEST_INT32)] = 100
    """Calls that may run at a time on one connection."""
    max_dataset_bytes: Annotated[int, _at_least(1)] = 10 * GIB
    """Bytes of one uploaded dataset."""
    max_artifact_bytes: Annotated[int, _at_least(1)] = 10 * GIB
    """Bytes of one uploaded model."""
    upload_expiry_s: Annotated[float, _at_least(1)] = 24 * 3600.0
    """Seconds for which an upload that broke off is kept for its client to go on with."""
    min_free_disk_bytes: Annotated[int, _at_least(0)] = 256 * MIB
    """Uploads are refused when less than this would stay free on the disk."""
    max_collections: Annotated[int, _within(1, LARGEST_UINT32)] = 1000
    """Number of collections."""
    max_payload_bytes: Annotated[int, _within(1, LARGEST_UINT32)] = 64 * KIB
    """Bytes of one point's payload, as JSON."""
    max_feedback: Annotated[int, _within(1, LARGEST_UINT32)] = 1_000_000
    """Choices of searchers that are kept to learn from, of all collections."""
    trackers_dir: Path | None = None
    """Folder that experiment trackers write into; default: trackers below the data directory."""
    wandb_online: bool = False
    """W&B sends what it is told to its server (WANDB_API_KEY) instead of keeping files for
    `wandb sync`."""
    mlflow_uri: str = ""
    """Tracking URI of MLflow; default: a SQLite file in the folder of the trackers."""
    resume_jobs: Annotated[str, _one_of("auto", "manual")] = "auto"
    """After a restart, jobs that were interrupted go on by themselves (auto) or when asked to
    (manual)."""
    shutdown_wait_s: Annotated[float, _at_least(0)] = 0.1
    """Seconds after SIGTERM in which the health service says NOT_SERVING and calls are still
    taken; behind a load balancer as long as it takes to notice."""
    shutdown_grace_s: Annotated[float, _at_least(0)] = 30.0
    """Seconds that running calls have to end after SIGTERM."""
    watchdog_s: Annotated[float, _at_least(0.1)] = 60.0
    """The health service says NOT_SERVING when work waits this many seconds and nothing is
    encoded."""

    def __post_init__(self) -> None:
        problems: dict[str, str] = {}
        hints = typing.get_type_hints(type(self), include_extras=True)
        for setting in fields(self):
            for check in getattr(hints[setting.name], "__metadata__", ()):
                if problem := check(getattr(self, setting.name)):
                    problems[setting.name] = problem
        if "host" not in problems and self.host not in LOOPBACK and not self.insecure:
            problems["host"] = (
                f"{self.host} is reached from other machines, and this server neither encrypts "
                "nor authenticates; listen on 127.0.0.1, or say --insecure if the network is yours"
            )
        in_clear = self.vectors_api_key and self.vectors_url.startswith("http://")
        if in_clear and not self.insecure and urlsplit(self.vectors_url).hostname not in LOOPBACK:
            problems["vectors_api_key"] = (
                "would be sent in clear to another machine; use https://, or say --insecure if the "
                "network is yours"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def models_path(self) -> Path:
        """Folder of local models."""
        return self.models_dir or self.data_dir / "models"

    @property
    def trackers_path(self) -> Path:
        """Folder of experiment trackers."""
        return self.trackers_dir or self.data_dir / "trackers"

    @property
    def database(self) -> str:
        """URL of the metadata database."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'hotclip.db').resolve()}"
