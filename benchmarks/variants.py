"""More versions of a model, made of one: the same files, other weights."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
NOISE = 0.5
"""Over the standard deviation of each matrix: enough for vectors of its own."""


def write_variant(folder: Path, target: Path, *, seed: int) -> None:
    """Copies a model in open_clip's local-dir layout with noise on every matrix.

    Gains, biases and statistics stay, so that the activations keep their size.

    Args:
        folder: What it is made of.
        target: A folder that is not there.
        seed: Of the noise.
    """
    target.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name not in (WEIGHTS, "hotclip_version.json"):
            shutil.copyfile(path, target / path.name)
    generator = np.random.default_rng(seed)
    state = load_file(folder / WEIGHTS)
    for name, value in state.items():
        if value.ndim > 1 and value.dtype == np.float32:
            noise = generator.standard_normal(value.shape, np.float32)
            noise *= np.float32(NOISE * value.std())
            state[name] = value + noise
    save_file(state, target / WEIGHTS, metadata={"format": "pt"})
