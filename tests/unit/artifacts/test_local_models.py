"""A model that was exported encodes without a server, as plain open_clip does."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pil
from support.exporting import Workshop
from support.hub_files import SENTENCES
from support.parity import INPUTS, assert_parity
from support.pictures import encoded, photograph

import hotclip
from hotclip.errors import DataLoss, FailedPrecondition, InvalidArgument
from hotclip_server.artifacts.archive import unpack
from hotclip_server.artifacts.records import ArtifactFormat

TEXTS = [f"{number}: {SENTENCES[number % 7][: 5 + number]}" for number in range(INPUTS - 2)]
TEXTS += ["&lt;b&gt; Grüße &amp; “quotes”", "word " * 100]


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    yield made
    made.close()


def expected(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Texts and images by plain open_clip."""
    name = f"local-dir:{folder}"
    options = {}
    if (folder / "config.json").is_file():
        text = dict(open_clip.get_model_config(name)["text_cfg"])
        options["text_cfg"] = text | {"hf_model_name": str(folder), "hf_model_pretrained": False}
    model, _, transform = open_clip.create_model_and_transforms(name, **options)
    model.eval()
    images = torch.stack([transform(Pil.open(io.BytesIO(photo(i)))) for i in range(INPUTS)])
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
        return texts.numpy(), model.encode_image(images, normalize=True).numpy()


def photo(seed: int) -> bytes:
    return encoded(photograph(seed, 60, 44))


@pytest.mark.slow  # towers are traced
def test_both_towers_of_a_multilingual_model_encode_here(
    workshop: Workshop, tmp_path: Path
) -> None:
    version = workshop.make("xlm-roberta")
    record = workshop.export(version, ArtifactFormat.ONNX)
    archive = workshop.artifacts.path(record)
    folder = tmp_path / "unpacked"
    folder.mkdir()
    unpack(archive, folder)
    texts, images = expected(folder)
    photos = [photo(seed) for seed in range(INPUTS)]
    spec = workshop.versions.read_manifest(version).spec
    for is_onnx in (True, False):
        text = hotclip.get_model(archive, "clip-text", is_onnx=is_onnx)
        made = text.encode(TEXTS, batch_size=9)
        assert (made.version, made.space_id) == (version, spec.space_id)
        assert_parity(np.asarray(made), texts, range(INPUTS))
        vision = hotclip.get_model(folder, "clip-vision", is_onnx=is_onnx)
        assert_parity(np.asarray(vision.encode(photos, batch_size=24)), images, range(INPUTS))
        single = vision.encode(photos[0])
        assert single.shape == (spec.dim,)
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    for tower in ("clip-text", "clip-vision"):
        onnx.checker.check_model(str(folder / f"{tower}.onnx"))


def test_ids_are_open_clips(workshop: Workshop, tmp_path: Path) -> None:
    from hotclip._local_texts import LocalTokenizer
    from hotclip_server.encoding.local_tokenizer import write_local_tokenizer

    for kind in ("clip", "siglip", "mini", "xlm-roberta"):
        folder = workshop.versions.folder(workshop.make(kind))
        out = tmp_path / f"{kind}-out"
        out.mkdir()
        tokenizer = workshop.versions.load(folder.name).tokenizer
        settings = write_local_tokenizer(tokenizer, folder, out)
        assert settings is not None
        file = out if (out / "tokenizer.json").is_file() else folder
        local = LocalTokenizer(file / "tokenizer.json", settings, {"trim": "none"})
        theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS).numpy()
        np.testing.assert_array_equal(local(TEXTS), theirs)


def test_a_damaged_model_is_not_read(workshop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    unpack(workshop.artifacts.path(workshop.export(workshop.make("clip"))), folder)
    for name in ("open_clip_model.safetensors", "open_clip_config.json", "hotclip_version.json"):
        good = (folder / name).read_bytes()
        flipped = bytearray(good)
        flipped[-3] ^= 1
        for bad in (bytes(flipped), good[: len(good) // 2]):
            (folder / name).write_bytes(bad)
            with pytest.raises(DataLoss):
                hotclip.get_model(folder, "clip-text")
        (folder / name).write_bytes(good)
    assert hotclip.get_model(folder, "clip-text").encode(["a"]).shape[0] == 1


def test_what_is_wrong_is_said(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = workshop.artifacts.path(workshop.export(workshop.make("clip")))
    with pytest.raises(FailedPrecondition) as caught:
        hotclip.get_model(archive, "clip-text", is_onnx=True)
    assert caught.value.reason == "NOT_ONNX"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FailedPrecondition, match="onnxruntime is missing"):
        hotclip.get_model(archive, "clip-text", is_onnx=True)
    for path, tower in ((tmp_path, "clip-text"), (archive, "clip"), (tmp_path / "no", "clip-text")):
        with pytest.raises(InvalidArgument):
            hotclip.get_model(path, tower)  # type: ignore[arg-type]  # that is what is refused
    text = hotclip.get_model(archive, "clip-text")
    vision = hotclip.get_model(archive, "clip-vision")
    with pytest.raises(InvalidArgument, match=r"data\[1\]"):
        text.encode(["a", b"image"])
    with pytest.raises(InvalidArgument, match=r"data\[0\]"):
        vision.encode("a text")
    with pytest.raises(InvalidArgument) as unreadable:
        vision.encode([b"\x89PNG nothing"])
    assert unreadable.value.reason == "IMAGE_UNREADABLE"
    with pytest.raises(InvalidArgument):
        text.encode([])
