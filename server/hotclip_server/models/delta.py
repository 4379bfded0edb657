"""What differs between two versions of one architecture, as a small file.

    hotclip_delta.json            which version it is applied to, and what comes of it
    hotclip_delta.safetensors     "full/<name>": a tensor that changed;
                                  "down/<name>" [rank, columns] and "up/<name>" [rows, rank]: what
                                  is added to one is up @ down, its shape [rows, ...]

A tensor is stored as factors if its difference has a low rank within fp32 rounding, as training
with LoRA leaves it (Hu et al. 2021). Where none is, applying gives the very same weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hotclip_server.encoding.weights import write_tensors
from hotclip_server.errors import DataLoss, FailedPrecondition
from hotclip_server.models.manifest import WEIGHTS_FILE, StoredVersion, is_version_id

DELTA_FILE, DELTA_WEIGHTS = "hotclip_delta.json", "hotclip_delta.safetensors"
FORMAT = 1
MOST_RANK = 64
TOLERANCE = 5e-7
"""Largest error of a weight made of factors, as a share of the tensor's largest: fp32 rounds to
6e-8."""
_FULL, _DOWN, _UP = "full/", "down/", "up/"
_SPARE = 8
"""Directions looked at beyond the largest rank, so that a larger one is noticed."""


@dataclass(frozen=True, kw_only=True)
class DeltaInfo:
    """What a delta is."""

    base_version: str
    base_sha256: str
    """Of the base's weights file."""
    version: str
    """Version that it was made of; what is applied has the same id if `exact`."""
    exact: bool
    changed: int
    """Tensors that differ."""
    low_rank: int
    """How many of them are stored as factors."""
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> DeltaInfo:
        """Raises FailedPrecondition with reason VERSION_UNFIT."""
        try:
            info = cls(**json.loads((folder / DELTA_FILE).read_bytes()))
            good = info.format == FORMAT and is_version_id(info.base_version)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise _unfit(f"{DELTA_FILE} is damaged: {error}") from error
        if not good:
            raise _unfit(f"{DELTA_FILE} is of another format or names no version")
        return info


def write_delta(base: StoredVersion, version: StoredVersion, out: Path) -> dict[str, Path]:
    """Writes the files of a delta into `out`; gives them by name. One tensor at a time is compared.

    Raises:
        FailedPrecondition: another config, tokenizer, or other weights; reason
            ARCHITECTURES_DIFFER.
    """
    same = {name: digest for name, digest in version.files.items() if name != WEIGHTS_FILE}
    if same != {name: digest for name, digest in base.files.items() if name != WEIGHTS_FILE}:
        raise _differ(base, version)
    made: dict[str, Tensor] = {}
    with (
        safe_open(base.folder / WEIGHTS_FILE, "pt") as old,
        safe_open(version.folder / WEIGHTS_FILE, "pt") as new,
    ):
        if set(old.keys()) != set(new.keys()):
            raise _differ(base, version)
        for name in sorted(new.keys()):
            before, after = old.get_tensor(name), new.get_tensor(name)
            if before.shape != after.shape:
                raise _differ(base, version)
            if not torch.equal(before, after):
                made.update(_difference(name, before, after))
    low_rank = sum(name.startswith(_UP) for name in made)
    info = DeltaInfo(
        base_version=base.manifest.id,
        base_sha256=base.manifest.sha256,
        version=version.manifest.id,
        exact=not low_rank,
        changed=len(made) - low_rank,
        low_rank=low_rank,
    )
    write_tensors(made, out / DELTA_WEIGHTS)
    (out / DELTA_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n", "utf-8")
    return {name: out / name for name in (DELTA_FILE, DELTA_WEIGHTS)}


def apply_delta(state: Mapping[str, Tensor], folder: Path) -> None:
    """Changes the weights of the base, in fp32 on the CPU, in place.

    Names and shapes are compared before the first tensor is read.

    Raises:
        FailedPrecondition: it is of another architecture; reason VERSION_UNFIT.
        DataLoss: not a safetensors file.
    """
    try:
        with safe_open(folder / DELTA_WEIGHTS, "pt") as file, torch.no_grad():
            names = set(file.keys())
            _check(state, {name: file.get_slice(name).get_shape() for name in names})
            for name in sorted(names):
                kind, target = name[: name.index("/") + 1], state[name.partition("/")[2]]
                if kind == _FULL:
                    target.copy_(file.get_tensor(name))
                elif kind == _UP:
                    down = file.get_tensor(_DOWN + name.removeprefix(_UP)).double()
                    added = file.get_tensor(name).double() @ down
                    target.copy_(target.double() + added.view(target.shape))
    except SafetensorError as error:
        raise DataLoss(f"{DELTA_WEIGHTS} is not a whole safetensors file: {error}") from error


def _difference(name: str, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    factors = _factors(before, after) if after.is_floating_point() and after.ndim > 1 else None
    if factors is None:
        return {_FULL + name: after}
    down, up = factors
    return {_DOWN + name: down, _UP + name: up}


def _factors(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor] | None:
    """[rank, columns] and [rows, rank] in fp32, if so few say it all.

    By a randomised range finder: Halko, Martinsson and Tropp 2011, algorithm 4.4 with one
    iteration.
    """
    change = (after.double() - before.double()).flatten(1)
    rows, columns = change.shape
    most = min(MOST_RANK, rows * columns // (2 * (rows + columns)))
    if most < 1 or not bool(torch.isfinite(change).all()):
        return None
    generator = torch.Generator().manual_seed(0)
    width = min(most + _SPARE, rows, columns)
    probe = torch.randn(columns, width, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(change @ probe).Q
    basis = torch.linalg.qr(change @ (change.T @ basis)).Q
    left, sizes, right = torch.linalg.svd(basis.T @ change, full_matrices=False)
    largest = float(after.abs().max())
    # What rounding to fp32 alone leaves: independent errors, at most half a unit in the last place.
    noise = 6e-8 * largest * (math.sqrt(rows) + math.sqrt(columns))
    rank = int((sizes > noise).sum())
    if not 1 <= rank <= most:
        return None
    roots = sizes[:rank].sqrt()
    up = ((basis @ left[:, :rank]) * roots).float().contiguous()
    down = (roots[:, None] * right[:rank]).float().contiguous()
    made = (before.double().flatten(1) + up.double() @ down.double()).float()
    error = float((made - after.flatten(1)).abs().max())
    return (down, up) if error <= TOLERANCE * largest else None


def _check(state: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> None:
    """What is stored must be of these weights, and factors come in pairs that fit."""
    for name, shape in shapes.items():
        kind, target = name.partition("/")[0] + "/", state.get(name.partition("/")[2])
        if target is None or kind not in (_FULL, _DOWN, _UP):
            raise _unfit(f"the delta has {name!r}, the base has no such weight")
        size, short = list(target.shape), name.partition("/")[2]
        if kind == _FULL:
            fits = list(shape) == size
        else:
            up, down = shapes.get(_UP + short, [0, 0]), shapes.get(_DOWN + short, [0, 0])
            fits = target.ndim > 1 and target.is_floating_point() and _FULL + short not in shapes
            fits = fits and len(up) == len(down) == 2 and 1 <= up[1] <= MOST_RANK
            fits = fits and up[1] == down[0] and up[0] == size[0]
            fits = fits and down[1] == math.prod(size[1:])
        if not fits:
            raise _unfit(f"{name} has shape {list(shape)}, the base's weight {size}")


def _differ(base: StoredVersion, version: StoredVersion) -> FailedPrecondition:
    return FailedPrecondition(
        f"versions {base.manifest.id} and {version.manifest.id} differ in more than weights",
        reason="ARCHITECTURES_DIFFER",
    )


def _unfit(problem: str) -> FailedPrecondition:
    return FailedPrecondition(problem, reason="VERSION_UNFIT")
