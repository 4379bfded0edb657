"""What a measurement ran on: device, processor, versions, day."""

import datetime
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

LIBRARIES = (
    "hotclip",
    "torch",
    "open_clip_torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "grpcio",
    "protobuf",
    "numpy",
    "pillow",
    "transformers",
)
CPU_INFO = Path("/proc/cpuinfo")


def device_name(device: str) -> str:
    """As its maker calls it, e.g. "NVIDIA H100 80GB HBM3"; "cpu" for a processor."""
    if not device.startswith("cuda"):
        return "cpu"
    import torch

    return torch.cuda.get_device_name(device)


def has_device(device: str) -> bool:
    """Whether PyTorch finds such a device here; imports it only to ask for CUDA."""
    if not device.startswith("cuda"):
        return True
    import torch

    return torch.cuda.is_available()


def cuda_version(device: str) -> str:
    """That PyTorch was built with; "none" for a processor."""
    if not device.startswith("cuda"):
        return "none"
    import torch

    return str(torch.version.cuda)


def slug(name: str) -> str:
    """Of a device's name, for the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> dict[str, str]:
    """Of Python and of the libraries that matter."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def describe_machine(device: str) -> dict[str, Any]:
    """Device, processor, cores, memory in GiB, system, versions, day of the measurement."""
    return {
        "device": device_name(device),
        "cuda": cuda_version(device),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    """Its name, and what tells apart the generations that a cloud gives one name."""
    if not CPU_INFO.is_file():
        return platform.processor()
    first, _, _ = CPU_INFO.read_text(encoding="utf-8").partition("\n\n")
    fields = {
        name.strip(): told.strip()
        for name, _, told in (line.partition(":") for line in first.splitlines())
    }
    if "model name" not in fields:
        return platform.processor()
    generation = [f"{name} {fields[name]}" for name in ("cpu family", "model") if name in fields]
    return (
        f"{fields['model name']} ({', '.join(generation)})" if generation else fields["model name"]
    )
