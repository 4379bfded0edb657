"""A process of its own that imports a source and asks plain open_clip for its embeddings.

`python reference.py SOURCE NAME PRETRAINED STORE CONFIGS IMAGES TEXTS OUT [PUBLISH]`

CONFIGS is a folder of configs that take the place of open_clip's own. PRETRAINED is what a
user would give open_clip, or "stored" for the weights file of the imported version. With
PUBLISH, a folder of the hub, random weights are put there first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from hotclip_server.models.store import VersionStore


def publish(name: str, folder: Path) -> None:
    """Random weights, in open_clip's layout on a hub."""
    torch.manual_seed(3)
    model = open_clip.create_model(name, pretrained_text=False)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def main(source: str, name: str, pretrained: str, *paths: str) -> None:
    store_root, configs, images, texts, out, *published = map(Path, paths)
    open_clip.add_model_config(configs)
    if published:
        publish(name, published[0])
    store = VersionStore(store_root, allow_random_weights=True)
    version = store.import_source(source)
    if pretrained == "stored":
        pretrained = str(store.folder(version.id) / "open_clip_model.safetensors")
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained or None)
    model.eval()
    captions = json.loads(texts.read_text("utf-8"))
    tokens = open_clip.get_tokenizer(name)(captions)
    pixels = []
    for path in sorted(images.iterdir()):
        with Image.open(path) as image:
            pixels.append(transform(image))
    with torch.no_grad():
        image_vectors = [
            model.encode_image(torch.stack(pixels[i : i + 8]), normalize=True)
            for i in range(0, 64, 8)
        ]
        text_vectors = [
            model.encode_text(tokens[i : i + 16], normalize=True) for i in range(0, 64, 16)
        ]
    np.savez(
        out,
        images=torch.cat(image_vectors).numpy(),
        texts=torch.cat(text_vectors).numpy(),
        version=version.id,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
