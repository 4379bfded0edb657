"""A tower of a model, run by open_clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip._local import Encode, Tower
from hotclip._parcel import CONFIG_FILE


def read_torch(folder: Path, tower: Tower, device: str) -> Encode:
    """See `get_model`."""
    import open_clip
    import torch

    name = f"local-dir:{folder}"
    text = json.loads((folder / CONFIG_FILE).read_bytes())["model_cfg"]["text_cfg"]
    options: dict[str, Any] = {}
    if text.get("hf_model_name") and (folder / "config.json").is_file():
        # The config of its text tower is here: no hub is asked.
        options["text_cfg"] = {**text, "hf_model_name": str(folder), "hf_model_pretrained": False}
    model: Any = open_clip.create_model(name, device=device, **options)
    model.eval()
    if tower == "clip-text":
        tokenizer = open_clip.get_tokenizer(name)

        def texts(items: list[Any]) -> NDArray[np.float32]:
            with torch.no_grad():
                rows = model.encode_text(tokenizer(items).to(device), normalize=True)
            return np.asarray(rows.float().cpu().numpy(), np.float32)

        return texts
    told = model.visual.preprocess_cfg
    mean = 255 * torch.tensor(told["mean"]).view(1, 3, 1, 1).to(device)
    std = 255 * torch.tensor(told["std"]).view(1, 3, 1, 1).to(device)

    def images(items: list[Any]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(np.stack(items)).to(device).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            rows = model.encode_image((pixels - mean) / std, normalize=True)
        return np.asarray(rows.float().cpu().numpy(), np.float32)

    return images
