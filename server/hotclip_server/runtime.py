"""What the server runs on: device, precision, versions of libraries."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from hotclip_server.config import ConfigError, ServerConfig
from hotclip_server.services.server_info import Runtime

LIBRARIES = ("torch", "open_clip_torch", "grpcio", "numpy")
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def resolve_device(name: str) -> str:
    """The device that a setting means: "cpu" or "cuda:<n>". Imports torch unless it is "cpu".

    Raises:
        ConfigError: there is no such device.
    """
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if count else "cpu"
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        raise ConfigError({"device": f"{name} is not there: {count} CUDA devices were found"})
    return f"cuda:{number}"


def describe_runtime(config: ServerConfig, device: str) -> Runtime:
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
