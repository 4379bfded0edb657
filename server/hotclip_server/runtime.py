"""What the server runs on: device, precision, versions of libraries."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hotclip_server.config import ConfigError, ServerConfig
from hotclip_server.services.server_info import Runtime

LIBRARIES = ("torch", "open_clip_torch", "grpcio", "numpy")
ENGINE_LIBRARIES = (
    *("hotclip", "torch", "open_clip_torch", "timm", "transformers"),
    *("onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "onnxscript"),
)
CPU_INFO = Path("/proc/cpuinfo")


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
        engine=config.engine,
        precision=config.precision,
        libraries={name: found for name in LIBRARIES if (found := _version(name))},
    )


def describe_machine(device: str, threads: int) -> str:
    """Names what speed and rounding depend on: measurements of another machine do not count."""
    parts = [device, platform.machine(), f"{threads or os.cpu_count()} threads"]
    parts += [f"{name} {found}" for name in ENGINE_LIBRARIES if (found := _version(name))]
    if device.startswith("cuda"):
        import torch

        parts.append(torch.cuda.get_device_name(device))
    elif CPU_INFO.exists():
        fields = (line.partition(":") for line in CPU_INFO.read_text().splitlines())
        known = {name.strip(): value.strip() for name, _, value in fields}
        parts += [known.get("model name", ""), _digest(known.get("flags", ""))]
    return ", ".join(parts)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
