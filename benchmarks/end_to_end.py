"""One model on one device, through a real server: encode, fine-tune, activate, roll back."""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import TEXT_TOWER, VISION_TOWER
from benchmarks.engines import wait_for_engines
from benchmarks.load import Load
from benchmarks.parity import compare
from benchmarks.reference import Reference
from benchmarks.server_process import running_server
from benchmarks.shapes import captioned_shapes
from hotclip import Client

PAIRS = 64
"""Captioned pictures that are compared and trained on; parity wants 64 different inputs."""
CHUNK = 32
"""Inputs of one timed call."""
SWAP_S = 1.0
"""Seconds of load before and after each flip."""


def check_model(model: str, device: str, data_dir: Path, *, steps: int) -> dict[str, Any]:
    """Figures of `model` (a source of LoadVersion) on `device`, and whether all is well."""
    options = ("--device", device, "--model", model, "--allow-random-weights")
    texts, images = map(list, zip(*captioned_shapes(PAIRS), strict=True))
    with (
        running_server(data_dir, *options, start_s=300.0) as server,
        Client(server.address, timeout=300.0) as client,
    ):
        first = client.encode(texts[0]).version
        report: dict[str, Any] = {"parity": parity(client, data_dir, first, texts, images)}
        report["speed"] = speed(client, device, data_dir / "versions" / first, texts, images)
        began = time.monotonic()
        second = tune(client, texts, images, steps)
        report["fine_tune_s"] = time.monotonic() - began
        report["swap"] = swap(client, server.address, first, second)
        client.activate(second)
        report["parity_tuned"] = parity(client, data_dir, second, texts, images)
    checks = [*report["parity"].values(), *report["parity_tuned"].values(), report["swap"]]
    report["passed"] = all(check["passed"] for check in checks)
    return report


def parity(
    client: Client, data_dir: Path, version: str, texts: Sequence[str], images: Sequence[bytes]
) -> dict[str, dict[str, float | bool]]:
    """Served vectors of a version against open_clip on its files, each modality on its own."""
    reference = Reference(data_dir / "versions" / version)
    exact = wait_for_engines(client).exact
    served = (
        client.encode(list(texts), version=version),
        client.encode(list(images), version=version),
    )
    own = reference.encode_texts(texts), reference.encode_images(images)
    names, towers = ("text", "image"), (TEXT_TOWER, VISION_TOWER)
    return {
        name: compare(np.asarray(got), wanted).as_dict(exact=exact[tower])
        for name, tower, got, wanted in zip(names, towers, served, own, strict=True)
    }


def speed(
    client: Client, device: str, folder: Path, texts: Sequence[str], images: Sequence[bytes]
) -> dict[str, float]:
    """Items a second in calls of CHUNK, and over what plain open_clip does on the device."""
    plain = Reference(folder, device)
    few_texts, few_images = list(texts[:CHUNK]), list(images[:CHUNK])
    served_texts = rate(lambda: client.encode(few_texts))
    served_images = rate(lambda: client.encode(few_images))
    one = rate(lambda: client.encode(few_texts[:1]), items=1)
    return {
        "texts_per_s": served_texts,
        "images_per_s": served_images,
        "one_text_ms": 1000 / one,
        "texts_ratio_to_open_clip": served_texts / rate(lambda: plain.encode_texts(few_texts)),
        "images_ratio_to_open_clip": served_images / rate(lambda: plain.encode_images(few_images)),
    }


def rate(call: Callable[[], object], *, items: int = CHUNK, seconds: float = 1.0) -> float:
    """Items a second: the median of at least five calls, after two that are not timed."""
    call(), call()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < until:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return items / float(np.median(times))


def tune(client: Client, texts: Sequence[str], images: Sequence[bytes], steps: int) -> str:
    """Fine-tunes the live version for a few steps; the id of the version that came of it."""
    job = client.finetune(
        list(zip(texts, images, strict=True)),
        method="full",
        max_steps=steps,
        batch_size=16,
        learning_rate=1e-4,
        activation="never",
    )
    return job.wait().result_version


def swap(client: Client, address: str, first: str, second: str) -> dict[str, Any]:
    """Flips to `second` and back under load."""
    before = np.asarray(client.encode("a photo"))
    with Load(address) as load:
        time.sleep(SWAP_S)
        began = time.monotonic()
        client.activate(second)
        activated = time.monotonic()
        time.sleep(SWAP_S)
        rolled = time.monotonic()
        client.rollback()
        back = time.monotonic()
        time.sleep(SWAP_S)
    after = client.encode("a photo")
    flips = [version for version, _ in itertools.groupby(load.versions)]
    same = bool(np.array_equal(before, np.asarray(after)))
    return {
        "requests": len(load.versions),
        "failed": len(load.failures),
        "activate_ms": 1000 * (activated - began),
        "rollback_ms": 1000 * (back - rolled),
        "longest_gap_ms": load.longest_gap_ms(),
        "rollback_restores_vectors": same,
        "passed": not load.failures and flips == [first, second, first] and same,
    }
