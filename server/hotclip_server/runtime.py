"""What the server runs on: device, precision, versions of libraries."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from hotclip_server.config import ServerConfig
from hotclip_server.services.server_info import Runtime

LIBRARIES = ("torch", "open_clip_torch", "grpcio", "numpy")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def describe_runtime(config: ServerConfig, device: str = "cpu") -> Runtime:
    """Reads installed versions; imports none of the libraries."""
    return Runtime(
        server_version=_version("hotclip") or "0",
        device=device,
        engine="eager",
        precision=PRECISIONS[config.precision],
        libraries={name: found for name in LIBRARIES if (found := _version(name))},
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
