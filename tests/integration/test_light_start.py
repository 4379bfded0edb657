"""What a server imports: what its model needs, and the rest when something needs it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file
from support.exporting import write_multilingual
from support.parity import assert_parity
from support.pictures import encoded, photograph
from support.server import start_server
from support.small_models import write_model

from hotclip import Client
from hotclip_server.encoding.architecture import CONFIG_FILE, OpenClipConfig, build_model
from hotclip_server.models import probe_inputs

TRANSFORMERS, TIMM = "transformers.utils", "timm.layers"
"""Asking for the packages themselves is told of too, when they are put off."""
IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.M)
HEAVY = {
    *(TRANSFORMERS, TIMM, "torch._dynamo", "sympy"),
    *("onnx", "onnx_ir", "onnxscript", "onnxruntime", "pytorch_metric_learning", "tensorboard"),
    *("alembic", "jinja2", "qdrant_client", "wandb", "mlflow"),
    *("hotclip_server.training.trainer", "hotclip_server.training.evaluate"),
}


def test_a_server_imports_what_it_needs_when_it_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    write_model(models / "convnext", "convnext")
    write_multilingual(models / "xlm", "xlm-roberta")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    flags = ("--device", "cpu", "--engine", "eager", "--models-dir", str(models))
    with (
        start_server(tmp_path / "data", *flags, fresh=True, knows_engines=False) as server,
        Client(server.address) as client,
    ):
        client.encode(["a photo of a red fox", encoded(photograph(1), "JPEG")])
        imported = set(IMPORTED.findall(server.log))
        assert {"torch", "open_clip.model", "torchvision", "qdrant_edge"} <= imported
        assert imported & HEAVY == set()

        # A tower of timm and one of Hugging Face are open_clip's own all the same.
        for kind, side in (("convnext", 64), ("xlm", 32)):
            version = client.load_version(f"local:{kind}").id
            texts, images = probe_inputs.texts(), probe_inputs.images(side)
            expected = reference(models / kind, texts, images)
            for items, rows in zip((texts, list(images)), expected, strict=True):
                found = client.encode(items, version=version)
                assert_parity(np.asarray(found), rows, range(len(rows)))
            client.unload_version(version)
        assert {TRANSFORMERS, TIMM} <= set(IMPORTED.findall(server.log))


def reference(
    folder: Path, texts: list[str], images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What open_clip, all of it, gives in this process: float32 (64, dim) of each tower."""
    config = OpenClipConfig.from_json((folder / CONFIG_FILE).read_bytes())
    model: Any = build_model(config, folder)
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
    with torch.no_grad():
        return model.encode_text(tokens).numpy(), model.encode_image(pixels).numpy()
