"""What is stored and searched: emoji drawings, each turned, moved, scaled and tinted in many ways,
as builtin:mini sees them.

Points that lie near each other are pictures of one thing, and things that look alike lie nearer
than others, as in a catalogue; vectors drawn at random have no neighbourhoods, which flatters or
defeats an index. builtin:mini has 128 dimensions. They are mapped into 512 by a matrix with
orthonormal rows: every cosine stays as it is, and a comparison costs what 512 dimensions cost.
"""

import io
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from hotclip import Client, Embeddings, Image
from hotclip_examples.emoji import Concept, Style, load_concepts, render

SEED = 20_260_102
STYLES: tuple[Style, ...] = ("openmoji", "twemoji")
TURN_DEGREES, SCALE, SHIFT, TINT = 20.0, 0.2, 0.1, 0.15
"""Most that a drawing is turned, scaled, moved (of its side) and tinted (of a channel)."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One concept in one style."""

    name: str
    style: Style
    picture: Pictures.Image


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Points and queries, all float32 (n, dim) of unit length."""

    ids: list[str]
    payloads: list[dict[str, str | int]]
    vectors: NDArray[np.float32]
    queries: NDArray[np.float32]
    """First those by picture, jittered anew, then those by name."""
    by_picture: int
    """How many queries are pictures."""


def make_corpus(
    client: Client, image_size: int, *, points: int, queries: int, concepts: int, dim: int
) -> Corpus:
    """Draws, encodes and maps.

    Args:
        client: Of a server whose live model encodes.
        image_size: Height and width of its input in pixels.
        concepts: So many of them; 0: all.
        dim: At least the model's.
    """
    chosen = load_concepts()[:concepts] if concepts else load_concepts()
    drawings = _draw(chosen, image_size)
    ids = [f"{at}" for at in range(points)]
    payloads: list[dict[str, str | int]] = []
    for at in range(points):
        variant, which = divmod(at, len(drawings))
        drawing = drawings[which]
        payloads.append({"name": drawing.name, "style": drawing.style, "variant": variant})
    shown = itertools.islice(itertools.cycle(drawings), points)
    vectors = _encode(client, _jittered(shown, SEED), points)
    by_picture = queries // 2
    rng = random.Random(SEED)
    asked = rng.choices(drawings, k=by_picture)
    pictures = _encode(client, _jittered(asked, SEED + 1), by_picture)
    names = [rng.choice(chosen).name for _ in range(queries - by_picture)]
    texts = np.asarray(client.encode(names, priority="bulk"), np.float32)
    mapping = _orthonormal(vectors.shape[1], dim)
    return Corpus(
        ids=ids,
        payloads=payloads,
        vectors=_unit(vectors @ mapping),
        queries=_unit(np.concatenate([pictures, texts]) @ mapping),
        by_picture=by_picture,
    )


def tenth_nearest(
    corpus: Corpus, chosen: Sequence[int] | NDArray[np.intp] | None = None
) -> NDArray[np.float32]:
    """Cosine of each query's tenth nearest point, by comparing all; float32 (queries,).

    Args:
        chosen: Positions of the points that count; None: all.
    """
    vectors = corpus.vectors if chosen is None else corpus.vectors[chosen]
    nearest = []
    for start in range(0, len(corpus.queries), 100):
        cosines = corpus.queries[start : start + 100] @ vectors.T
        nearest.append(np.partition(cosines, -10, axis=1)[:, -10])
    return np.concatenate(nearest)


def _draw(concepts: Sequence[Concept], size: int) -> list[Drawing]:
    found = []
    for concept, style in itertools.product(concepts, STYLES):
        png = render(concept.code, style, size)
        picture = Pictures.open(io.BytesIO(png)).convert("RGB")
        found.append(Drawing(name=concept.name, style=style, picture=picture))
    return found


def _jittered(drawings: Iterator[Drawing] | Sequence[Drawing], seed: int) -> Iterator[Image]:
    rng = np.random.default_rng(seed)
    for drawing in drawings:
        yield Image.from_pixels(_jitter(drawing.picture, rng))


def _jitter(picture: Pictures.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A view of the picture; uint8 (side, side, 3)."""
    side = picture.width
    angle = np.deg2rad(rng.uniform(-TURN_DEGREES, TURN_DEGREES))
    scale = 1 + rng.uniform(-SCALE, SCALE)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    middle = side / 2
    across, down = side * rng.uniform(-SHIFT, SHIFT, 2)
    # Pixel (x, y) of the view is what lies at (a·x + b·y + c, d·x + e·y + f) of the picture.
    affine = (
        *(cos, -sin, middle - cos * (middle + across) + sin * (middle + down)),
        *(sin, cos, middle - sin * (middle + across) - cos * (middle + down)),
    )
    view = picture.transform(
        (side, side),
        Pictures.Transform.AFFINE,
        affine,
        Pictures.Resampling.BILINEAR,
        fillcolor=(255, 255, 255),
    )
    tint = 1 - rng.uniform(0, TINT, 3)
    tinted: NDArray[np.uint8] = (np.asarray(view) * tint).astype(np.uint8)
    return tinted


def _encode(client: Client, images: Iterator[Image], count: int) -> NDArray[np.float32]:
    """float32 (count, dim of the model)."""
    rows: list[Embeddings] = [encoded.vector for encoded in client.encode_stream(images)]
    if len(rows) != count:
        raise RuntimeError(f"{len(rows)} vectors of {count} pictures; this is a bug")
    return np.stack(rows).astype(np.float32)


def _orthonormal(dim: int, wider: int) -> NDArray[np.float32]:
    """Orthonormal rows, (dim, wider)."""
    if wider < dim:
        raise ValueError(f"{dim} dimensions do not fit into {wider}")
    square = np.random.default_rng(SEED).standard_normal((wider, dim))
    rows: NDArray[np.float32] = np.linalg.qr(square)[0].T.astype(np.float32)
    return rows


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
