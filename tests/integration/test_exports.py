"""A model leaves a real server and comes back: over broken connections, whole, and the same."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.flaky import FlakyProxy
from support.graphs import know_graphs
from support.parity import INPUTS, assert_parity
from support.pictures import encoded, photograph
from support.server import start_server

import hotclip
from hotclip import Client
from hotclip.errors import JobFailed

TEXTS = [f"number {n} of the photos of {what}" for n in range(32) for what in ("a cat", "Köln")]


@pytest.mark.slow
def test_a_model_leaves_and_comes_back(tmp_path: Path) -> None:
    photos = [encoded(photograph(seed, 96, 72)) for seed in range(INPUTS)]
    with start_server(tmp_path / "data", "--device", "cpu") as server:
        with (
            FlakyProxy(server.address, [3_000_000, 5_000_000]) as proxy,
            Client(proxy.address) as client,
        ):
            live = client.get_model().live_version
            path = client.export().save_artifact(tmp_path / "out")
            assert proxy.cut == 2
            assert path.name == f"hotclip-{live}.tar"
            (artifact,) = client.list_artifacts(live)
            again = client.export(live).wait(60)
            assert again.artifacts == (artifact.id,)  # nothing was written twice
            texts, images = client.encode(TEXTS), client.encode(photos)

        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
        folder = tmp_path / "unpacked" / f"hotclip-{live}"
        check_parity(folder, np.asarray(texts), np.asarray(images), photos)

        # What comes back is the same version, from the folder or from the archive.
        with (
            FlakyProxy(server.address, [4_000_000]) as proxy,
            Client(proxy.address) as client,
        ):
            told: list[int] = []
            run = client.import_version(folder, progress=lambda done, _: told.append(done))
            assert run.wait(120).result_version == live
            assert told[-1] >= artifact.size_bytes - 20_000
            assert client.import_version(path).wait(120).result_version == live
            # A version of another name and other weights, and one that does not fit.
            change_weights(folder)
            made = client.import_version(folder).wait(120).result_version
            version = client.get_version(made)
            assert made != live
            assert version.source.startswith("artifact:art-")
            assert version.architecture == client.get_version(live).architecture
            config = json.loads((folder / "open_clip_config.json").read_text())
            config["model_cfg"]["embed_dim"] += 1
            (folder / "open_clip_config.json").write_text(json.dumps(config))
            with pytest.raises(JobFailed) as caught:
                client.import_version(folder).wait(120)
            assert caught.value.reason == "VERSION_UNFIT"
            assert "shape" in str(caught.value)
            assert {v.id for v in client.versions()} == {live, made}


def check_parity(folder: Path, texts: np.ndarray, images: np.ndarray, photos: list[bytes]) -> None:
    """Plain open_clip on the unpacked folder gives the server's embeddings."""
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    pixels = []
    for number, photo in enumerate(photos):
        file = folder.parent / f"{number}.png"
        file.write_bytes(photo)
        with Image.open(file) as image:
            pixels.append(transform(image))
    with torch.no_grad():
        expected_texts = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
        expected_images = model.encode_image(torch.stack(pixels), normalize=True)
    assert_parity(texts, expected_texts.numpy(), range(INPUTS))
    assert_parity(images, expected_images.numpy(), range(INPUTS))


def change_weights(folder: Path) -> None:
    path = folder / "open_clip_model.safetensors"
    state = load_file(path)
    state["logit_scale"] = state["logit_scale"] * 0.9
    name = next(name for name, value in state.items() if value.ndim > 1)
    state[name] = state[name] * 1.01
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.slow
def test_a_tuned_model_is_taken_along(tmp_path: Path) -> None:
    """Fine-tuned, saved, run without the server, sent to another server as a difference."""
    know_graphs(tmp_path / "a")
    photos = [encoded(photograph(seed, 96, 72)) for seed in range(INPUTS)]
    pairs = [(f"thing {i}", photograph(i, 64, 64)) for i in range(16)]
    with (
        start_server(tmp_path / "a", "--device", "cpu") as server,
        Client(server.address) as client,
    ):
        run = client.finetune(
            pairs,
            method="full",
            max_steps=2,
            batch_size=8,
            learning_rate=1e-3,
            activation="never",
        )
        path = run.save_artifact(tmp_path / "out", format="onnx")
        tuned = run.job().result_version
        base = client.get_version(tuned).parent
        for is_onnx in (True, False):
            text = hotclip.get_model(path, "clip-text", is_onnx=is_onnx).encode(TEXTS)
            vision = hotclip.get_model(path, "clip-vision", is_onnx=is_onnx).encode(photos)
            theirs = client.encode(TEXTS, version=tuned), client.encode(photos, version=tuned)
            assert text.space_id == theirs[0].space_id
            for ours, expected in zip((text, vision), theirs, strict=True):
                assert_parity(np.asarray(ours), np.asarray(expected), range(INPUTS))
        delta = client.export(tuned, format="delta").save_artifact(tmp_path / "out")
        half = client.merge_versions([base, tuned], alpha=0.5)
        soup = client.merge_versions([base, tuned])
        assert (half.parent, soup.parent) == (tuned, base)
        swept = client.evaluate(pairs, version=tuned, alphas=[0, 0.5, 1])
        swept.wait(60)
        points = [m.metrics["alpha"] for m in swept.measurements() if m.stage == "ALPHA"]
        assert points == [0, 0.5, 1]
    with (
        start_server(tmp_path / "b", "--device", "cpu") as server,
        Client(server.address) as client,
    ):
        assert client.get_model().live_version == base
        assert client.import_version(delta).wait(60).result_version == tuned
        assert client.get_version(tuned).parent == base
