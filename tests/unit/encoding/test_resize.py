"""The resize of bytes: where it may stand for Pillow's, and on whose threads it runs."""

import subprocess
import sys

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from support.pictures import photograph

from hotclip_server.encoding import resize
from hotclip_server.encoding.resize import Resizer

THREADS = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
sys.path[:0] = sys.argv[1:]
import torch
from open_clip.transform import PreprocessCfg
from support.pictures import encoded, photograph
from hotclip_server.encoding.image import ImageLimits, ImagePreparer

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(4)
files = [encoded(photograph(1, 900, 700), kind) for kind in ("JPEG", "PNG", "WEBP")]
files.append(encoded(photograph(1, 900, 700).convert("L")))
configs = PreprocessCfg(size=224), PreprocessCfg(size=336, resize_mode="longest")
preparers = [ImagePreparer(asdict(config), ImageLimits()) for config in configs]
before = threads()
with ThreadPoolExecutor(1) as pool:
    list(pool.map(lambda preparer: [preparer.prepare(file) for file in files], preparers))
    print(threads() - before, end=" ")
torch.rand(2000, 2000).clone()
print(threads() - before > 1)
"""


def steps(**options: object) -> list[object]:
    return image_transform_v2(PreprocessCfg(**options), is_train=False).transforms[:-3]


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_a_pool_thread_takes_no_other_threads(request: pytest.FixtureRequest) -> None:
    folder = str(request.config.rootpath / "tests")
    command = [sys.executable, "-c", THREADS, folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    # The second word says that torch would take more, had it been asked to copy the same.
    assert done.stdout.split() == ["1", "True"]


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_this_pillow_is_the_one_that_is_equalled(mode: str) -> None:
    assert resize._equals_pillow.__wrapped__(mode)


def test_another_order_of_passes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (lambda size, new: True, lambda size, new: False):
        monkeypatch.setattr(resize, "_vertical_first", wrong)
        assert not resize._equals_pillow.__wrapped__("bicubic")


def test_what_is_not_known_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Resizer.can_do(steps(size=224))
    assert not Resizer.can_do([])
    assert not Resizer.can_do([*steps(size=224), *steps(size=224)])
    assert not Resizer.can_do([lambda image: image])
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    assert not Resizer.can_do(steps(size=224))


@pytest.mark.parametrize(
    ("height", "width", "sure"),
    [(359, 700, True), (358, 700, False), (224, 224, True), (100, 100, False), (224, 448, True)],
)
def test_small_scales_are_left_to_pillow(height: int, width: int, sure: bool) -> None:
    assert Resizer(steps(size=224)).is_sure_of(height, width) == sure


def test_nothing_is_left_of_a_strip() -> None:
    assert not Resizer(steps(size=64, resize_mode="longest")).is_sure_of(1, 5000)


def test_the_input_is_not_changed() -> None:
    pixels = np.array(photograph(1, 500, 400))
    before = pixels.copy()
    made = Resizer(steps(size=224))(pixels)
    assert made.shape == (224, 224, 3)
    assert made.flags.c_contiguous
    assert np.array_equal(pixels, before)
    same = Resizer(steps(size=(400, 500), resize_mode="squash"))(pixels)
    assert np.array_equal(same, np.asarray(Image.fromarray(before)))
