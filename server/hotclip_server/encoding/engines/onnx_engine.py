"""ONNX Runtime runs a tower: a graph of its architecture, and the weights of its version."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from hotclip_server.encoding.engines.onnx_graphs import PREFIX
from hotclip_server.encoding.engines.onnx_int8 import quantise
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.engines.source import TowerSource
from hotclip_server.encoding.protocol import Tower

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

Providers = list[tuple[str, dict[str, str]]]
"""Names and options, the preferred one first."""

_ERRORS = 3
"""Severity from which ONNX Runtime logs."""


def providers(device: torch.device, available: Sequence[str] | None = None) -> Providers:
    """What a session on `device` asks for: nothing that this installation has not.

    Args:
        available: For tests.

    Raises:
        EngineUnfit: a GPU is meant, and this ONNX Runtime can't use one.
    """
    if device.type == "cpu":
        return [(CPU, {})]
    if available is None:
        available = onnxruntime.get_available_providers()
    if device.type != "cuda" or CUDA not in available:
        raise EngineUnfit(f"this ONNX Runtime does not run on {device.type}: {list(available)}")
    # TF32 would round what is multiplied to 10 bits: fp32 means fp32.
    options = {"device_id": str(device.index or 0), "use_tf32": "0"}
    return [(CUDA, options), (CPU, {})]


class OnnxEngine:
    """Implements `Engine`.

    Args:
        graph: As `export_graph` makes it, serialised.
        precision: "fp32", or "int8" for the products of linear layers.
        chosen: See `providers`.
        threads: Of one batch on the CPU; 0: one a core.

    Raises:
        EngineUnfit: the graph wants weights that the model has not, or the GPU can't be used.
    """

    name = "onnx"
    padded = True

    def __init__(
        self,
        graph: bytes,
        source: TowerSource,
        precision: str,
        chosen: Providers,
        *,
        threads: int = 0,
    ) -> None:
        self.precision = precision
        self._pad = source.text.pad if source.tower is Tower.TEXT else None
        self._device = source.device
        model = onnx.load_from_string(graph)
        weights = weights_of(model, source.model.state_dict())
        if precision == "int8":
            weights = quantise(model, weights)
        options = session_options(threads)
        # The session makes its own copies, laid out for this processor.
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in weights.items()
        }
        options.add_external_initializers(list(values), list(values.values()))
        if chosen[0][0] == CUDA:
            onnxruntime.preload_dlls()  # those that came with torch
        self._session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=chosen
        )
        self._input: str = self._session.get_inputs()[0].name
        self._output: str = self._session.get_outputs()[0].name
        if self._session.get_providers()[0] != chosen[0][0]:
            self._session = None
            raise EngineUnfit(f"ONNX Runtime could not make use of {chosen[0][0]}")

    def run(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """See `Engine.run`."""
        session = self._session
        if session is None:
            raise RuntimeError("the engine is closed; this is a bug")
        items = np.stack(batch) if self._pad is None else self._pad(batch)
        rows: NDArray[np.float32]
        if self._device.type == "cpu":
            (rows,) = session.run([self._output], {self._input: items})
            return rows
        # Nothing but the input and the features crosses the bus.
        binding = session.io_binding()
        binding.bind_cpu_input(self._input, items)
        binding.bind_output(self._output, "cuda", self._device.index or 0)
        session.run_with_iobinding(binding)
        (rows,) = binding.copy_outputs_to_cpu()
        return rows

    def close(self) -> None:
        """Frees the weights; no call may follow."""
        self._session = None


def session_options(threads: int) -> Any:
    """For a server on few cores: no thread spins while there is nothing to do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Processors without products of 8 bits that sum in 32 would clip pairs of them to 16.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # A plan of memory for each shape that was ever seen would grow with every new length.
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS
    return options


def weights_of(
    model: onnx.ModelProto, state: Mapping[str, torch.Tensor]
) -> dict[str, NDArray[Any]]:
    """The initialisers that the graph names, of a model's state.

    Raises:
        EngineUnfit: one is missing, or of another shape.
    """
    found: dict[str, NDArray[Any]] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        value = state.get(tensor.name.removeprefix(PREFIX))
        if value is None or list(value.shape) != list(tensor.dims):
            raise EngineUnfit(f"the graph is of another model: {tensor.name} differs")
        found[tensor.name] = value.detach().cpu().contiguous().numpy()
    return found
