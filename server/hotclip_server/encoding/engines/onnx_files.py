"""Both towers of a version as ONNX files whose weights lie in its safetensors file.

A graph names each weight's place in `open_clip_model.safetensors` as external data, so weights
are there once for both towers and for open_clip, and nothing is too large for a file of ONNX.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hotclip_server.encoding.engines.onnx_export import FEATURES
from hotclip_server.encoding.engines.onnx_graphs import PREFIX, ExportEnded
from hotclip_server.encoding.engines.protocol import EngineUnfit
from hotclip_server.encoding.features import EPSILON
from hotclip_server.encoding.local_tokenizer import write_local_tokenizer
from hotclip_server.encoding.open_clip_encoder import OpenClipEncoder
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import FailedPrecondition, Unavailable
from hotclip_server.models.manifest import WEIGHTS_FILE

EMBEDDINGS = "embeddings"
"""Name of the output: unit length."""
LOCAL_FILE = "hotclip_local.json"
FORMAT = 1
_DTYPES = {"F32": TensorProto.FLOAT, "I64": TensorProto.INT64, "BOOL": TensorProto.BOOL}


class Graphs(Protocol):
    """Graphs without weights; `OnnxGraphs` is one."""

    def graph(self, version_folder: Path, tower: Tower) -> bytes:
        """A serialised graph; blocks. Raises EngineUnfit and ExportEnded."""


class Loader(Protocol):
    """Stored versions; `VersionStore` is one."""

    def folder(self, version_id: str) -> Path:
        """Where a version lies."""

    def load(self, version_id: str, *, device: str = "cpu") -> OpenClipEncoder:
        """A verified copy in memory."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a tensor lies in the file of weights."""

    dtype: str
    shape: list[int]
    offset: int
    length: int


class OnnxFiles:
    """Makes what an ONNX artifact has beside the version's own files. Blocks; any thread."""

    def __init__(self, versions: Loader, graphs: Graphs) -> None:
        self._versions = versions
        self._graphs = graphs

    def write(self, version_id: str, out: Path) -> dict[str, Path]:
        """Writes the files of a version into `out`; gives them by name.

        Raises:
            FailedPrecondition: a tower can't be exported; reason EXPORT_UNSUPPORTED.
            Unavailable: it could not be exported now.
            NotFound, DataLoss: the version is gone or damaged.
        """
        folder = self._versions.folder(version_id)
        encoder = self._versions.load(version_id)
        places = tensor_places(folder / WEIGHTS_FILE)
        made: dict[str, Path] = {}
        for tower in Tower:
            model = with_embeddings(with_weights(self._graph(folder, tower), places))
            path = out / f"{tower.value}.onnx"
            path.write_bytes(model.SerializeToString())
            made[path.name] = path
        tokenizer = write_local_tokenizer(encoder.tokenizer, folder, out)
        if (out / "tokenizer.json").is_file():
            made["tokenizer.json"] = out / "tokenizer.json"
        described = {
            "format": FORMAT,
            "version": version_id,
            "spec": asdict(encoder.spec),
            "images": {
                **asdict(encoder.image_preprocessing),
                "id": encoder.image_preprocessing.id,
            },
            "tokenizer": tokenizer,
            "shortening": encoder.preparation["shortening"],
        }
        encoder.close()
        path = out / LOCAL_FILE
        path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", "utf-8")
        return {**made, path.name: path}

    def _graph(self, folder: Path, tower: Tower) -> bytes:
        try:
            return self._graphs.graph(folder, tower)
        except EngineUnfit as error:
            raise FailedPrecondition(
                f"{tower.value} of version {folder.name} {error}", reason="EXPORT_UNSUPPORTED"
            ) from error
        except ExportEnded as error:
            raise Unavailable(str(error), retry_after_s=60.0, reason="EXPORT_ENDED") from error


def tensor_places(weights: Path) -> dict[str, _Place]:
    """Where each tensor of a safetensors file lies, by name.

    The file is an 8-byte little-endian length, a header of JSON of that length, and the data,
    which the offsets in the header are counted from.
    """
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, told in header.items():
        start, end = told["data_offsets"]
        found[name] = _Place(
            dtype=told["dtype"],
            shape=told["shape"],
            offset=8 + length + start,
            length=end - start,
        )
    return found


def with_weights(graph: bytes, places: dict[str, _Place]) -> onnx.ModelProto:
    """The graph, each of its weights read from its place in the safetensors file.

    Raises:
        FailedPrecondition: the graph is of another model; reason EXPORT_UNSUPPORTED.
    """
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = places.get(tensor.name.removeprefix(PREFIX))
        fits = place is not None and place.shape == list(tensor.dims)
        if place is None or not fits or _DTYPES.get(place.dtype) != tensor.data_type:
            raise FailedPrecondition(
                f"the weight {tensor.name} has no place in the file", reason="EXPORT_UNSUPPORTED"
            )
        del tensor.external_data[:]
        for key, value in (
            ("location", WEIGHTS_FILE),
            ("offset", place.offset),
            ("length", place.length),
        ):
            tensor.external_data.add(key=key, value=str(value))
    return model


def with_embeddings(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with rows of unit length as its output, as `unit_rows` makes them."""
    graph = model.graph
    (output,) = graph.output
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1], np.int64), "hotclip_last_axis"),
            numpy_helper.from_array(np.array(EPSILON, np.float32), "hotclip_least_norm"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node(
                "ReduceL2", [FEATURES, "hotclip_last_axis"], ["hotclip_norm"], keepdims=1
            ),
            helper.make_node("Max", ["hotclip_norm", "hotclip_least_norm"], ["hotclip_length"]),
            helper.make_node("Div", [FEATURES, "hotclip_length"], [EMBEDDINGS]),
        ]
    )
    made = onnx.ValueInfoProto()
    made.CopyFrom(output)
    made.name = EMBEDDINGS
    graph.output.remove(output)
    graph.output.append(made)
    helper.set_model_props(
        model,
        {
            "pixels": "uint8 RGB [items, height, width, 3], resized and cropped, not normalised",
            "ids": "int64 [items, tokens], padded as the tokenizer of the model does",
            "embeddings": "float32 [items, dim], unit length",
        },
    )
    return model
