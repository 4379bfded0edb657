"""What each wire format keeps of the search of `builtin:mini`: run this module for a table.

English names of emoji are searched among drawings of a set that the model did not learn
from. Both sides are encoded by a running server in the format and compared by cosine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotclip import Client, Embeddings
from hotclip_examples.demo.server import running_server
from hotclip_examples.emoji import concept_name, load_concepts, render
from hotclip_examples.mini.drawings import SIZE

NEAREST = 10
SEED = 0

Encode = Callable[[Sequence[str | bytes], "Format"], Embeddings]
"""Encodes texts or drawings in a format."""


@dataclass(frozen=True)
class Format:
    """How vectors are asked for. Queries may stay exact, for only what is stored must be small."""

    dtype: str
    dimensions: int | None = None
    exact_queries: bool = False

    def __str__(self) -> str:
        name = self.dtype if self.dimensions is None else f"{self.dtype}, {self.dimensions} of it"
        return f"{name}, exact queries" if self.exact_queries else name


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a format keeps.

    recall: Share of the ten exact nearest drawings that are among the ten nearest.
    hit: Share of names whose own drawing is among the ten nearest.
    """

    format: Format
    bytes_per_vector: int
    recall: float
    hit: float


EXACT = Format("float32")
FORMATS = (
    EXACT,
    Format("float16"),
    Format("int8"),
    Format("binary", exact_queries=True),
    Format("binary"),
    *(Format(dtype, dim) for dim in (64, 32) for dtype in ("float32", "int8")),
    *(Format("binary", dim, exact_queries=True) for dim in (64, 32)),
)


def measure(
    names: Sequence[str], drawings: Sequence[bytes], encode: Encode, formats: Sequence[Format]
) -> list[Kept]:
    """Searches each name among all drawings; names[i] belongs to drawings[i].

    Neighbours of equal score are taken in a random but fixed order.
    """
    order = np.random.default_rng(SEED).permutation(len(drawings))
    shuffled = [drawings[at] for at in order]
    own = np.argsort(order)[:, None]  # where the drawing of each name lies
    exact = nearest(encode(names, EXACT), encode(shuffled, EXACT))
    kept = []
    for form in formats:
        asked = Format("float32", form.dimensions) if form.exact_queries else form
        stored = encode(shuffled, form)
        found = nearest(encode(names, asked), stored)
        common = [len(np.intersect1d(a, b)) for a, b in zip(exact, found, strict=True)]
        scale = 4 if form.dtype == "int8" else 0
        kept.append(
            Kept(
                format=form,
                bytes_per_vector=stored[0].nbytes + scale,
                recall=float(np.mean(common)) / exact.shape[1],
                hit=float((found == own).any(axis=1).mean()),
            )
        )
    return kept


def nearest(queries: Embeddings, stored: Embeddings) -> NDArray[np.intp]:
    """Positions of the nearest rows by cosine, (queries, 10)."""
    if queries.space_id != stored.space_id:
        raise ValueError("vectors of two spaces are not to be compared")
    scores = np.round(_unit(queries) @ _unit(stored).T, 6)  # rounding must not decide ties
    best: NDArray[np.intp] = np.argsort(-scores, axis=1, kind="stable")[:, :NEAREST]
    return best


def table(kept: Sequence[Kept]) -> str:
    """In Markdown."""
    lines = ["| format | bytes | recall@10 | hit@10 |", "|---|---|---|---|"]
    lines += [
        f"| {row.format} | {row.bytes_per_vector} | {row.recall:.3f} | {row.hit:.3f} |"
        for row in kept
    ]
    return "\n".join(lines)


def encoder(client: Client) -> Encode:
    """Encodes by a server."""

    def encode(items: Sequence[str | bytes], form: Format) -> Embeddings:
        return client.encode(
            items, dtype=form.dtype, dimensions=form.dimensions, priority="bulk", timeout=300
        )

    return encode


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="hotclip_examples.mini.formats", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/emoji"), help="drawn images")
    cache: Path = parser.parse_args().cache
    concepts = load_concepts()
    names = [concept_name(concept, "en") for concept in concepts]
    drawings = [render(concept.code, "openmoji", SIZE, cache) for concept in concepts]
    with tempfile.TemporaryDirectory(prefix="hotclip-formats-") as folder:
        place = Path(folder)
        server = running_server(
            place / "data", place / "server.log", model="builtin:mini", device="cpu"
        )
        with server as address, Client(address) as client:
            print(f"{len(names)} names, {len(drawings)} drawings")
            print(table(measure(names, drawings, encoder(client), FORMATS)))


def _unit(vectors: Embeddings) -> NDArray[np.float64]:
    rows = np.asarray(vectors.dequantize(), np.float64)
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


if __name__ == "__main__":
    main()
