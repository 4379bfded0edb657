from __future__ import annotations

import io
import threading

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform_v2
from PIL import Image

from hotclip_server.training import images
from hotclip_server.training.augment import DRAWS, augment
from hotclip_server.training.config import AugmentConfig
from hotclip_server.training.dataset import TrainingSet
from hotclip_server.training.errors import InvalidPairs
from hotclip_server.training.images import ImageStore
from hotclip_server.training.pairs import MemoryPairs, Pair
from tests.unit.training.tiny import picture, tiny_clip


def noise(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_pixels_and_normalisation_equal_open_clips_transform():
    clip = tiny_clip()
    image = noise((31, 47))
    ours = clip.normalise(clip.pixels(image)[None].float() / 255)[0]
    theirs = image_transform_v2(clip.preprocess, is_train=False)(image)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_images_past_the_budget_are_read_again():
    clip = tiny_clip()
    reads: list[str] = []

    def read(key: str) -> bytes:
        reads.append(key)
        return picture((1, 2, 3))

    store = ImageStore(clip, ["a", "b"], read, budget_bytes=3 * 16 * 16)
    for _ in range(2):
        assert store.batch([0, 1]).shape == (2, 3, 16, 16)
    assert reads == ["a", "b", "b"]


def test_how_much_is_kept_follows_from_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch):
    reads: list[str] = []

    def read(key: str) -> bytes:
        reads.append(key)
        return picture((1, 2, 3))

    monkeypatch.setattr(images, "host_free_bytes", lambda: round(3 * 16 * 16 / images.KEPT_SHARE))
    store = ImageStore(tiny_clip(), ["a", "b"], read)
    for _ in range(2):
        store.batch([0, 1])
    assert reads == ["a", "b", "b"]
    assert images.budget_bytes_of(1 << 50) == images.budget_bytes_of(None) == 2 << 30


def test_what_is_prefetched_is_decoded_once_and_the_same():
    clip = tiny_clip()
    files = [picture((i, 2 * i, 3 * i)) for i in range(12)]
    reads: list[str] = []

    def read(key: str) -> bytes:
        reads.append(key)
        return files[int(key)]

    keys = [str(i) for i in range(12)]
    plain = ImageStore(clip, keys, lambda key: files[int(key)])
    store = ImageStore(clip, keys, read, budget_bytes=0)
    store.prefetch(range(0, 4))
    for start in range(0, 12, 4):
        numbers = range(start, start + 4)
        pixels = store.batch(numbers)
        store.prefetch(range(start + 4, min(start + 8, 12)))
        assert torch.equal(pixels, plain.batch(numbers))
    assert sorted(reads) == sorted(keys)
    store.prefetch([0, 1])
    store.prefetch([5])  # what is not asked for is forgotten
    assert torch.equal(store.batch([0]), plain.batch([0]))


def test_decodes_ahead_only_while_nobody_waits_and_pauses_after_what_it_decodes_itself():
    clip = tiny_clip()
    keys = [str(i) for i in range(4)]
    files = [picture((i, 2 * i, 3 * i)) for i in range(4)]
    readers: list[str] = []
    pauses: list[int] = []

    def read(key: str) -> bytes:
        readers.append(threading.current_thread().name)
        return files[int(key)]

    plain = ImageStore(clip, keys, lambda key: files[int(key)])
    store = ImageStore(clip, keys, read, budget_bytes=0, waits=lambda: True)
    store.prefetch(range(4))
    pixels = store.batch(range(4), lambda: pauses.append(len(readers)))
    assert torch.equal(pixels, plain.batch(range(4)))
    assert readers == ["MainThread"] * 4
    assert pauses == [1, 2, 3, 4]


def test_what_is_kept_is_not_prefetched():
    reads: list[str] = []

    def read(key: str) -> bytes:
        reads.append(key)
        return picture((1, 2, 3))

    store = ImageStore(tiny_clip(), ["a", "b"], read)
    store.batch([0, 1])
    store.prefetch([0, 1])
    assert store.batch([1, 0]).shape == (2, 3, 16, 16)
    assert reads == ["a", "b"]


def test_a_prefetched_image_that_is_missing_is_named():
    store = ImageStore(tiny_clip(), ["gone"], {}.__getitem__)
    store.prefetch([0])
    with pytest.raises(InvalidPairs, match="'gone'"):
        store.batch([0])


def test_a_missing_image_is_named():
    with pytest.raises(InvalidPairs, match="'gone'"):
        ImageStore(tiny_clip(), ["gone"], {}.__getitem__).batch([0])


def test_each_image_draws_from_its_own_captions():
    images = {"a": picture((0, 0, 0)), "b": picture((9, 9, 9))}
    pairs = [Pair("a", "x"), Pair("b", "y", "g"), Pair("a", "z", "g"), Pair("b", "x")]
    training_set = TrainingSet(tiny_clip(), MemoryPairs(pairs, images))
    seen = set()
    for epoch in range(30):
        drawn = training_set.captions(0, epoch)
        batch = training_set.batch(np.array([1, 0]), drawn)
        assert [pairs[i].image_key for i in drawn.pairs] == ["a", "b"]
        seen |= {pairs[i] for i in drawn.pairs}
        assert batch.image_keys[0].tolist() == [1, 0]
        same_text = pairs[drawn.pairs[0]].text == pairs[drawn.pairs[1]].text
        assert (batch.text_keys[1][0] == batch.text_keys[1][1]) == same_text
    assert seen == set(pairs)


everything = AugmentConfig(
    crop=(0.8, 1.3),
    shift=0.1,
    rotate=20,
    brightness=0.5,
    grey=0.5,
    hue=0.5,
    outline=0.5,
    line_art=0.5,
    blur=0.5,
)


def draws(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, DRAWS, generator=torch.Generator().manual_seed(seed))


def test_augmentation_is_deterministic_in_range_and_leaves_its_input():
    images = torch.rand(8, 3, 16, 16)
    before = images.clone()
    first, second, other = (augment(images, everything, draws(8, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    alone = torch.cat(
        [augment(images[i : i + 1], everything, draws(8, 1)[i : i + 1]) for i in range(8)]
    )
    torch.testing.assert_close(alone, first)
    assert first.shape == images.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


def test_augmentation_is_off_unless_told():
    images = torch.rand(3, 3, 8, 8)
    still = augment(images, AugmentConfig(), draws(3))
    assert torch.equal(still, images)


def test_fully_grey_and_line_art_have_no_colour():
    images = torch.rand(64, 3, 16, 16)
    drawn = augment(images, AugmentConfig(crop=(1, 1), line_art=1.0), draws(64))
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    hue = augment(images, AugmentConfig(crop=(1, 1), hue=1.0), draws(64))
    assert not torch.allclose(hue, images)
    grey = augment(torch.full((4, 3, 8, 8), 0.5), AugmentConfig(hue=1.0), draws(4))
    torch.testing.assert_close(grey, torch.full((4, 3, 8, 8), 0.5))


def test_image_bytes_decode_like_pillow():
    clip = tiny_clip()
    buffer = io.BytesIO()
    noise((16, 16)).save(buffer, "PNG")
    store = ImageStore(clip, ["a"], lambda _: buffer.getvalue())
    expected = torch.from_numpy(np.asarray(noise((16, 16))).copy()).permute(2, 0, 1)
    assert torch.equal(store.batch([0])[0], expected)
