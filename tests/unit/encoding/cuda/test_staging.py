"""Rows that images wait in."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from hotclip_server.encoding.cuda.staging import StagingRows

SHAPE = (4, 4, 3)
ROWS = 5


def rows() -> StagingRows:
    return StagingRows(torch.zeros(ROWS * 48, dtype=torch.uint8), SHAPE)


def image(number: int) -> NDArray[np.uint8]:
    return np.full(SHAPE, number, np.uint8)


def test_an_image_lies_in_its_row_as_long_as_anybody_looks_at_it() -> None:
    staged = rows()
    placed = [staged.place(image(number)) for number in range(ROWS)]
    places = [staged.index_of(pixels) for pixels in placed]
    assert sorted(place for place in places if place is not None) == list(range(ROWS))
    for number, place in enumerate(places):
        assert place is not None
        assert staged.memory[place].unique().tolist() == [number]
    part = placed[2][1:, :2]
    last = places[2]
    del placed
    gc.collect()
    assert len(staged.free) == ROWS - 1
    assert last not in staged.free
    assert part.tolist() == image(2)[1:, :2].tolist()
    del part
    assert len(staged.free) == ROWS


def test_the_memory_outlives_its_owner() -> None:
    pixels = rows().place(image(7))
    gc.collect()
    assert np.array_equal(pixels, image(7))


def test_without_a_free_row_an_image_stays_where_it_is() -> None:
    staged = rows()
    held = [staged.place(image(number)) for number in range(ROWS)]
    other = image(9)
    assert staged.place(other) is other
    assert staged.index_of(other) is None
    assert len(held) == ROWS


def test_another_shape_stays_where_it_is() -> None:
    staged = rows()
    other = np.zeros((2, 2, 3), np.uint8)
    assert staged.place(other) is other


def test_only_a_whole_row_is_one() -> None:
    staged = rows()
    pixels = staged.place(image(1))
    assert staged.index_of(pixels[:, ::-1]) is None
    assert staged.index_of(pixels[1:]) is None
    assert staged.index_of(pixels.copy()) is None


def test_many_threads() -> None:
    staged = rows()

    def work(number: int) -> bool:
        placed = [staged.place(image(number)) for _ in range(3)]
        return all(np.array_equal(pixels, image(number)) for pixels in placed)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [number % 250 for number in range(2000)]))
    assert sorted(staged.free) == list(range(ROWS))
