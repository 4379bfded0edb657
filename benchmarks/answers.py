"""Whether the answers of a timed segment were right: a fast wrong answer is no figure."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.parity import compare
from hotclip_proto.v1.encode_pb2 import EncodeResponse, EncodeStreamResponse
from hotclip_proto.v1.types_pb2 import D_TYPE_FLOAT32


class WrongAnswer(RuntimeError):
    """An answer was an error, or not what plain open_clip gives."""


class Answers:
    """The last answer to each request, kept as bytes while the clock runs.

    Args:
        references: float32 (m, dim): plain open_clip's unit vectors of the first m items; None:
            vectors are only counted.
        items: Of one request.
        exact: Whether vectors must be as near as fp32 is; else as near as bf16 is.
    """

    def __init__(self, references: NDArray[np.float32] | None, items: int, *, exact: bool) -> None:
        self._references = references
        self._items = items
        self._exact = exact
        self._kept: dict[int, bytes] = {}
        self._streamed: dict[int, bytes] = {}
        self._unpacked: dict[int, NDArray[np.float32]] = {}

    def keep(self, request: int, answer: bytes) -> None:
        """An EncodeResponse, by the position of its request."""
        self._kept[request] = answer

    def keep_streamed(self, request: int, answer: bytes) -> None:
        """An EncodeStreamResponse that holds one."""
        self._streamed[request] = answer

    def keep_rows(self, request: int, rows: NDArray[np.float32]) -> None:
        """Vectors (items, dim) that a client unpacked."""
        self._unpacked[request] = rows

    def checked(self) -> dict[str, float]:
        """The smallest cosine, and the largest distance over the references' median one.

        Raises:
            WrongAnswer: an error among the answers, or a vector too far from its reference.
        """
        responses = {at: EncodeResponse.FromString(data) for at, data in self._kept.items()}
        for at, data in self._streamed.items():
            answer = EncodeStreamResponse.FromString(data).answer
            if answer.WhichOneof("outcome") != "response":
                raise WrongAnswer(f"request {at}: {answer.error.reason}: {answer.error.message}")
            responses[at] = answer.response
        rows = self._rows(responses)
        if self._references is None:
            return {}
        return compare_rows(rows, self._references, exact=self._exact)

    def _rows(self, responses: Mapping[int, EncodeResponse]) -> dict[int, NDArray[np.float32]]:
        """Vectors by position of the item."""
        rows: dict[int, NDArray[np.float32]] = {
            at * self._items + row: vector
            for at, vectors in self._unpacked.items()
            for row, vector in enumerate(vectors)
        }
        for at, response in responses.items():
            for error in response.errors:
                raise WrongAnswer(f"item {error.index}: {error.reason}: {error.message}")
            block = response.vectors
            if block.count != self._items or block.dtype != D_TYPE_FLOAT32:
                raise WrongAnswer(f"{block.count} vectors for {self._items} items")
            vectors = np.frombuffer(block.data, "<f4").reshape(block.count, block.dim)
            rows |= {at * self._items + row: vector for row, vector in enumerate(vectors)}
        return rows


def compare_rows(
    rows: Mapping[int, NDArray[np.float32]], references: NDArray[np.float32], *, exact: bool
) -> dict[str, float]:
    """Unit vectors by position of their item against the references that there are.

    Raises:
        WrongAnswer: fewer than two can be compared, or one is too far.
    """
    positions = [at for at in sorted(rows) if at < len(references)]
    if len(positions) < 2:
        raise WrongAnswer(f"{len(positions)} of {len(rows)} answers can be compared")
    parity = compare(np.stack([rows[at] for at in positions]), references[positions])
    verdict = parity.as_dict(exact=exact)
    if not verdict["passed"]:
        raise WrongAnswer(f"vectors are not open_clip's: {verdict}")
    return {"min_cosine": parity.cosine, "distance_ratio": parity.distance_ratio}
