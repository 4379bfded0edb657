"""Pictures with the statistics of photographs, from a seed: no download, no two alike.

Amplitudes fall as 1/f, as they do in natural scenes (Field 1987), colours vary less than
brightness, and a few hard edges cross the picture; so JPEG files get the size, and decoders
the work, of a photograph's.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

FIELD = (1200, 1600)
"""Height and width of the texture that pictures are cut from."""
QUALITY = 90
EDGES = 6


class Photographer:
    """Makes pictures one after another; the same seed makes the same ones.

    Args:
        seed: Of everything.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        brightness, *colours = (_pink(self._random, 1.1) for _ in range(3))
        self._field = np.stack(
            [brightness + 0.4 * colours[0], brightness, brightness + 0.4 * colours[1]], axis=-1
        )  # (height, width, 3), mean 0, deviation about 1

    def picture(self, width: int, height: int) -> NDArray[np.uint8]:
        """uint8 RGB of shape (height, width, 3)."""
        random = self._random
        coarse, fine = self._cut(width, height), self._cut(width, height)
        tint = random.uniform(60, 190, size=3)
        scene = tint + random.uniform(25, 50) * coarse + random.uniform(5, 15) * fine
        canvas = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
        self._draw_edges(canvas)
        return np.asarray(canvas)

    def jpeg(self, width: int, height: int) -> bytes:
        """A JPEG file of quality 90, 4:2:0, as cameras and web sites write them."""
        buffer = io.BytesIO()
        Image.fromarray(self.picture(width, height)).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()

    def _cut(self, width: int, height: int) -> NDArray[np.float32]:
        top, left = (
            int(self._random.integers(whole - part + 1))
            for whole, part in zip(FIELD, (height, width), strict=True)
        )
        window = self._field[top : top + height, left : left + width]
        flips = [slice(None, None, step) for step in self._random.choice([-1, 1], size=2)]
        return window[flips[0], flips[1]]

    def _draw_edges(self, canvas: Image.Image) -> None:
        brush = ImageDraw.Draw(canvas)
        random = self._random
        for _ in range(EDGES):
            colour = tuple(int(value) for value in random.integers(0, 256, size=3))
            (x, y), radius = random.uniform(0, canvas.size), random.uniform(0.02, 0.2)
            reach = radius * min(canvas.size)
            brush.ellipse((x - reach, y - reach / 2, x + reach, y + reach / 2), fill=colour)
            points = [tuple(random.uniform(0, canvas.size)) for _ in range(2)]
            brush.line(points, fill=colour, width=int(random.integers(1, 6)))


def _pink(random: np.random.Generator, slope: float) -> NDArray[np.float32]:
    """float32 of shape FIELD, mean 0, deviation 1, amplitudes falling as f ** -slope."""
    height, width = FIELD
    spectrum = np.fft.rfft2(random.standard_normal(FIELD, dtype=np.float32))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no mean
    field = np.fft.irfft2(spectrum / frequency**slope, s=FIELD)
    scaled: NDArray[np.float32] = (field / field.std()).astype(np.float32)
    return scaled
