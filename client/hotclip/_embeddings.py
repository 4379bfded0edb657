"""Vectors that know which version made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hotclip._vectors import Rows
from hotclip.errors import FailedPrecondition, ItemError
from hotclip_proto.v1 import encode_pb2

Kind: TypeAlias = Literal["float", "int8", "binary"]
_KINDS: dict[str, Kind] = {np.dtype(np.int8).char: "int8", np.dtype(np.uint8).char: "binary"}


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time of a call went on the server, in seconds.

    Of a call that was split into several requests, the sum over them.
    """

    preprocess_s: float = 0.0
    """Decoding, resizing, tokenising, summed over items."""
    queue_s: float = 0.0
    """The longest that an item waited for the device."""
    compute_s: float = 0.0
    """Of the batches that the items ran in; they hold items of other callers too."""
    total_s: float = 0.0
    """From admission to the answer."""

    def plus(self, told: encode_pb2.Timings) -> Timings:
        """With those of one more request."""
        return Timings(
            preprocess_s=self.preprocess_s + told.preprocess_us / 1e6,
            queue_s=self.queue_s + told.queue_us / 1e6,
            compute_s=self.compute_s + told.compute_us / 1e6,
            total_s=self.total_s + told.total_us / 1e6,
        )


class Embeddings(np.ndarray[Any, np.dtype[Any]]):
    """Vectors, wholly of one version: (n, dim), or (dim,) for a single item.

    An ordinary numpy array with more attributes. Copies (`e.copy()`, the module copy) keep
    all of them, slices and other views the version, space and model; results of arithmetic
    are plain arrays, for they are of no version.

    Of floats (float32, float16) the elements are the vectors'. Of int8 they are integers,
    of "binary" (uint8) eight signs a byte as numpy.packbits gives them: compare such arrays
    only after `dequantize`.

    Attributes:
        version: Id of the version that made every row.
        space_id: Space of the rows; only vectors of one space may be compared.
        text_encoder_id: Encoder of the rows of texts; empty if unknown. Vectors of one encoder may
            be compared whatever their version: stored ones stay valid while it is the same.
        vision_encoder_id: Encoder of the rows of images; empty if unknown.
        model: Name of the model.
        scales: Of int8 and "binary": float32 (n,), what an integer or a sign stands for;
            0 for a failed item. Rows by index (`e[3]`, `e[2:5]`, `e[mask]`) keep theirs;
            other views, `e.take` and `e.astype` lose them. None for floats.
        errors: Failed items of the call that made the array (their rows are zero);
            empty on slices.
        timings: Of the call that made the array; None on slices.
    """

    version: str
    space_id: str
    text_encoder_id: str
    vision_encoder_id: str
    model: str
    scales: NDArray[np.float32] | None
    errors: tuple[ItemError, ...]
    timings: Timings | None

    def __new__(
        cls,
        values: NDArray[Any],
        *,
        version: str,
        space_id: str,
        model: str = "",
        text_encoder_id: str = "",
        vision_encoder_id: str = "",
        dim: int | None = None,
        scales: NDArray[np.float32] | None = None,
        errors: tuple[ItemError, ...] = (),
        timings: Timings | None = None,
    ) -> Embeddings:
        array = np.asarray(values).view(cls)
        array.version, array.space_id, array.model = version, space_id, model
        array.text_encoder_id, array.vision_encoder_id = text_encoder_id, vision_encoder_id
        array._bits = 8 * array.shape[-1] if dim is None else dim
        array.scales, array.errors, array.timings = scales, errors, timings
        return array

    @classmethod
    def of_rows(
        cls,
        rows: Rows,
        *,
        version: str,
        space_id: str,
        model: str = "",
        text_encoder_id: str = "",
        vision_encoder_id: str = "",
    ) -> Embeddings:
        """Of an answer's rows."""
        return cls(
            rows.values,
            version=version,
            space_id=space_id,
            model=model,
            text_encoder_id=text_encoder_id,
            vision_encoder_id=vision_encoder_id,
            dim=rows.dim,
            scales=rows.scales,
        )

    @property
    def dim(self) -> int:
        """Elements of a vector; of "binary", signs."""
        return self._bits if self._kind == "binary" else int(self.shape[-1])

    @property
    def kind(self) -> Kind:
        """What the elements are; integers and signs remain that in any other dtype."""
        return self._kind

    def dequantize(self) -> Embeddings:
        """The vectors that the elements stand for, float32 (n, dim) or (dim,).

        Of int8 each element is off by at most half of its row's scale. Of "binary" every
        element is plus or minus 1 / sqrt(dim), so that rows have unit length and a dot
        product is 1 - 2 * (differing signs) / dim.

        Raises:
            FailedPrecondition: The scales were lost, e.g. by taking columns.
        """
        plain = np.asarray(self)
        if self.kind == "float":
            values = plain.astype(np.float32)
        elif self.scales is None:
            raise FailedPrecondition("only whole rows can be dequantized", reason="SCALES_LOST")
        elif self.kind == "int8":
            values = plain * self.scales[..., None]
        else:
            signs = np.unpackbits(plain, axis=-1, count=self.dim).astype(np.float32)
            values = (2 * signs - 1) * self.scales[..., None]
        return Embeddings(
            values,
            version=self.version,
            space_id=self.space_id,
            model=self.model,
            text_encoder_id=self.text_encoder_id,
            vision_encoder_id=self.vision_encoder_id,
            errors=self.errors,
            timings=self.timings,
        )

    def copy(self, order: Any = "C") -> Embeddings:
        """A copy of all."""
        made = super().copy(order).view(Embeddings)
        made.scales = None if self.scales is None else self.scales.copy()
        made.errors, made.timings = self.errors, self.timings
        return made

    def __copy__(self) -> Embeddings:
        return self.copy("K")

    def __deepcopy__(self, memo: dict[int, Any] | None) -> Embeddings:
        return self.copy("K")

    def __getitem__(self, key: Any) -> Any:
        taken = super().__getitem__(key)
        if self.scales is not None and isinstance(taken, Embeddings):
            whole = taken.ndim > 0 and taken.shape[-1] == self.shape[-1]
            if whole and self.ndim > 1 and not isinstance(key, tuple) and np.ndim(key) < 2:
                taken.scales = np.asarray(self.scales[key])
        return taken

    def __array_finalize__(self, source: NDArray[Any] | None) -> None:
        self.version = getattr(source, "version", "")
        self.space_id = getattr(source, "space_id", "")
        self.model = getattr(source, "model", "")
        self.text_encoder_id = getattr(source, "text_encoder_id", "")
        self.vision_encoder_id = getattr(source, "vision_encoder_id", "")
        self._bits: int = getattr(source, "_bits", 0)
        kind: Kind = getattr(source, "_kind", "float")
        self._kind = _KINDS.get(self.dtype.char, kind) if kind == "float" else kind
        self.scales = None
        self.errors = ()
        self.timings = None

    def __reduce__(self) -> tuple[Any, ...]:  # pickled for another process it stays known
        made: tuple[Any, ...] = super().__reduce__()  # type: ignore[assignment]  # not a str here
        return *made[:2], (made[2], self.__dict__)

    def __setstate__(self, state: Any) -> None:
        array, attributes = state
        super().__setstate__(array)
        self.__dict__.update(attributes)

    def __array_wrap__(
        self,
        array: NDArray[Any],
        context: Any = None,
        return_scalar: bool = False,
    ) -> Any:
        plain = np.asarray(array)
        return plain[()] if return_scalar or plain.ndim == 0 else plain
