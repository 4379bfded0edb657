"""Which engines come into question. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from hotclip_server.encoding.engines.protocol import EAGER, EngineChoice

AUTO = "auto"

_ENGINES = {"cpu": ("torch", "onnx"), "cuda": ("cuda", "torch")}
"""What auto means, in the order in which they are tried, by the kind of device. Plain open_clip
in a lower precision casts every weight at every batch: it is there for who asks for it."""
_PRECISIONS = {"cpu": ("bf16", "fp32"), "cuda": ("fp16", "bf16", "fp32")}
"""Of every engine where nothing is asked for; int8 is never meant by that."""
_ONLY = {"onnx": ("fp32", "int8")}
"""Precisions of engines that do not have the usual ones."""
_USUAL = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class EngineWish:
    """What the configuration asks for; "auto" leaves it to what is measured."""

    engine: str = AUTO
    precision: str = AUTO

    def __str__(self) -> str:
        return f"{self.engine}/{self.precision}"


def candidates(wish: EngineWish, device: str) -> list[EngineChoice]:
    """What to try on a device ("cpu", "cuda:0"), without the reference.

    Args:
        wish: If nothing can be as it asks, the list is empty and the reference is left.
    """
    kind = device.partition(":")[0]
    engines: tuple[str, ...] = _ENGINES.get(kind, ("torch",))
    if wish.engine != AUTO:
        engines = (wish.engine,)
    precisions = _PRECISIONS.get(kind, ("fp32",))
    if wish.precision != AUTO:
        precisions = (wish.precision,)
    found = [
        EngineChoice(engine, precision)
        for precision in precisions
        for engine in engines
        if precision in _ONLY.get(engine, _USUAL)
    ]
    return [choice for choice in found if choice != EAGER]
