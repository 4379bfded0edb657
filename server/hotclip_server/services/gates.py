"""The gates of ActivateVersion, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hotclip_proto.v1 import model_pb2
from hotclip_server.errors import FieldViolation, InvalidArgument
from hotclip_server.models.gates import MetricGate
from hotclip_server.training.monitors import higher_is_better

MOST_GATES = 32
_BOUNDS = ("at_least", "at_most", "live_margin")


def gates_from_proto(gates: Sequence[model_pb2.MetricGate]) -> tuple[MetricGate, ...]:
    """What was asked for.

    Raises:
        InvalidArgument: names every bad field.
    """
    problems = [problem for place, gate in enumerate(gates) for problem in _problems(gate, place)]
    if len(gates) > MOST_GATES:
        problems.append(FieldViolation("gates", f"{len(gates)}, at most {MOST_GATES} are taken"))
    if problems:
        raise InvalidArgument.fields(problems)
    return tuple(_gate(gate) for gate in gates)


def _problems(gate: model_pb2.MetricGate, place: int) -> Iterator[FieldViolation]:
    at = f"gates[{place}]"
    given = [name for name in _BOUNDS if gate.HasField(name)]  # type: ignore[arg-type]  # literals
    if not gate.metric:
        yield FieldViolation(f"{at}.metric", "must be given")
    if not given:
        yield FieldViolation(at, f"needs one of {', '.join(_BOUNDS)}")
    for name in given:
        if not math.isfinite(getattr(gate, name)):
            yield FieldViolation(f"{at}.{name}", "must be finite")
    if gate.HasField("live_margin"):
        if gate.live_margin < 0:
            yield FieldViolation(f"{at}.live_margin", f"{gate.live_margin:g} is below 0")
        if not gate.dataset:
            yield FieldViolation(
                f"{at}.dataset", "is needed to compare with the live version: both measured on it"
            )


def _gate(gate: model_pb2.MetricGate) -> MetricGate:
    return MetricGate(
        metric=gate.metric,
        dataset=gate.dataset,
        at_least=gate.at_least if gate.HasField("at_least") else None,
        at_most=gate.at_most if gate.HasField("at_most") else None,
        live_margin=gate.live_margin if gate.HasField("live_margin") else None,
        higher_is_better=higher_is_better(gate.metric),
    )
