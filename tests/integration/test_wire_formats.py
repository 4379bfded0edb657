"""The table of what each wire format keeps, made in small."""

from __future__ import annotations

import numpy as np
import pytest
from support.server import ServerProcess

from hotclip import Client, Embeddings
from hotclip_examples.emoji import concept_name, load_concepts, render
from hotclip_examples.mini.formats import FORMATS, Kept, encoder, measure, nearest, table


@pytest.fixture(scope="module")
def kept(server: ServerProcess) -> dict[str, Kept]:
    concepts = load_concepts()[::12]
    names = [concept_name(concept, "en") for concept in concepts]
    drawings = [render(concept.code, "openmoji", 64) for concept in concepts]
    with Client(server.address) as client:
        return {str(k.format): k for k in measure(names, drawings, encoder(client), FORMATS)}


def test_what_each_format_keeps(kept: dict[str, Kept]) -> None:
    assert kept["float32"].recall == 1
    assert kept["float32"].hit > 0.7
    assert kept["float16"].recall > 0.995
    assert kept["int8"].recall > 0.98
    assert 0.5 < kept["binary"].recall < kept["binary, exact queries"].recall < 0.95
    assert kept["float32, 32 of it"].recall < kept["float32, 64 of it"].recall < 0.97


def test_what_each_format_takes(kept: dict[str, Kept]) -> None:
    sizes = {name: row.bytes_per_vector for name, row in kept.items()}
    assert sizes["float32"] == 4 * sizes["float32, 32 of it"] == 512
    assert (sizes["float16"], sizes["int8"], sizes["binary"]) == (256, 132, 16)
    assert len(table(list(kept.values())).splitlines()) == 2 + len(FORMATS)


def test_vectors_of_two_spaces_are_not_compared() -> None:
    a, b = (Embeddings(np.eye(2), version="v", space_id=space) for space in "ab")
    with pytest.raises(ValueError, match="two spaces"):
        nearest(a, b)
