"""Linear layers of a graph in 8 bits: weights once, what they multiply at each batch.

A weight is rounded by output channel, W[k, n] ≈ Wq[k, n] s[n]; what it multiplies by row, that
is by token, x[m, k] ≈ a[m] (u[m, k] - 128) / 127 with a[m] = max |x[m, :]|. The scale of the usual
dynamic quantisation is one for the whole batch, so that a text's embedding would depend on
what happens to run beside it; here it does not. Convolutions, attention's own products,
normalisations and the last projection stay in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

STEPS = 127
"""On either side of zero."""
SMALLEST = 1e-30
"""Of a[m]: a row of zeros stays one."""
_RUNTIME = "com.microsoft"
"""ONNX Runtime's own operators."""


@dataclass(frozen=True, slots=True)
class _Linear:
    """x Wᵀ, + b if there is one, as a graph has it; W is [out, in]."""

    node: NodeProto
    weight: str
    bias: str


def quantise(
    model: onnx.ModelProto, weights: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Changes a graph whose weights are external, in place.

    Returns:
        The weights that it wants now.
    """
    graph = model.graph
    linears = {linear.node.output[0]: linear for linear in _linears(model)}
    kept = dict(weights)
    nodes: list[NodeProto] = []
    added: dict[str, TensorProto] = {}
    for node in graph.node:
        linear = linears.get(node.output[0]) if node.output else None
        if linear is None:
            nodes.append(node)
            continue
        nodes += _in_int8(linear)
        for name, value in _rounded(linear.weight, weights[linear.weight]).items():
            kept[name] = value
            added[name] = _external(name, value)
    constants = [
        numpy_helper.from_array(value, f"int8/{name}") for name, value in _CONSTANTS.items()
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    # Transposed weights are left without a reader.
    unread = [node for node in nodes if node.op_type == "Transpose" and node.output[0] not in used]
    for node in unread:
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    initializers = [TensorProto.FromString(tensor.SerializeToString()) for tensor in initializers]
    del graph.initializer[:]
    graph.initializer.extend([*initializers, *added.values(), *constants])
    if not any(opset.domain == _RUNTIME for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_RUNTIME, 1))
    return {name: value for name, value in kept.items() if name in used}


_CONSTANTS: dict[str, NDArray[Any]] = {
    "last": np.array([-1], np.int64),
    "smallest": np.array(SMALLEST, np.float32),
    "step": np.array(1 / STEPS, np.float32),
    "zero": np.array(128, np.uint8),
    "one": np.array(1, np.float32),
}


def _linears(model: onnx.ModelProto) -> Iterator[_Linear]:
    weights = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL and len(tensor.dims) == 2
    }
    transposed = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Transpose" and node.input[0] in weights
    }
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in transposed:
            yield _Linear(node, transposed[node.input[1]], "")
        if node.op_type == "Gemm" and node.input[1] in weights and _is_linear(node):
            yield _Linear(node, node.input[1], node.input[2] if len(node.input) > 2 else "")


def _is_linear(node: NodeProto) -> bool:
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    plain = given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0
    return bool(plain and given.get("transB", 0) == 1 and given.get("transA", 0) == 0)


def _rounded(name: str, weight: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Of [out, in] the transposed int8 [in, out], and s / 127, float32 [out]."""
    scale = np.maximum(np.abs(weight).max(1), SMALLEST) / STEPS
    rounded = np.rint(weight / scale[:, None]).astype(np.int8)
    return {
        f"{name}/int8": np.ascontiguousarray(rounded.T),
        f"{name}/scale": (scale / STEPS).astype(np.float32),
    }


def _in_int8(linear: _Linear) -> list[NodeProto]:
    x, y = linear.node.input[0], linear.node.output[0]

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        made: NodeProto = helper.make_node(kind, inputs, [output], f"{output}", **attributes)
        return made

    product = f"{y}/scaled" if linear.bias else y
    nodes = [
        node("ReduceMax", [x, "int8/last"], f"{y}/highest", keepdims=1),
        node("ReduceMin", [x, "int8/last"], f"{y}/lowest", keepdims=1),
        node("Neg", [f"{y}/lowest"], f"{y}/depth"),
        node("Max", [f"{y}/highest", f"{y}/depth", "int8/smallest"], f"{y}/range"),
        node("Div", [x, f"{y}/range"], f"{y}/unit"),
        node("QuantizeLinear", [f"{y}/unit", "int8/step", "int8/zero"], f"{y}/int8"),
        node(
            "MatMulIntegerToFloat",
            [
                f"{y}/int8",
                f"{linear.weight}/int8",
                "int8/one",
                f"{linear.weight}/scale",
                "int8/zero",
            ],
            f"{y}/product",
            domain=_RUNTIME,
        ),
        node("Mul", [f"{y}/product", f"{y}/range"], product),
    ]
    if linear.bias:
        nodes.append(node("Add", [product, linear.bias], y))
    return nodes


def _external(name: str, value: NDArray[Any]) -> TensorProto:
    tensor = TensorProto(
        name=name,
        dims=value.shape,
        data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    tensor.external_data.add(key="location", value="weights")
    return tensor
