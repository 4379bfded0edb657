"""A tower as an ONNX graph that names its weights and does not hold them.

    python -m hotclip_server.encoding.engines.onnx_export FOLDER TOWER OUT PARENT

A process of its own at low priority: exporting holds the interpreter lock for seconds, and
while it traces a module nothing else may run it. Only the configuration of the version in
FOLDER is read: every version of an architecture has the same graph.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from hotclip_server.encoding.architecture import CONFIG_FILE, OpenClipConfig, build_model
from hotclip_server.encoding.engines.onnx_graphs import PREFIX
from hotclip_server.encoding.protocol import Tower
from hotclip_server.encoding.text_tower import TextTower, Trim
from hotclip_server.parent import end_with
from hotclip_server.storage.atomic import write_atomically

OPSET = 18
"""Known to every ONNX Runtime that is admitted, and to most else that reads ONNX."""
PIXELS, IDS, FEATURES = "pixels", "ids", "features"
"""Names of the inputs, by tower, and of the output."""


def export_graph(model: nn.Module, tower: Tower, context_length: int) -> onnx.ModelProto:
    """Traces one tower. Nothing else may use the model meanwhile; its weights do not matter.

    Args:
        model: An open_clip model in fp32 on the CPU, in evaluation mode.

    Returns:
        A graph from `pixels`, uint8 [items, height, width, 3], or `ids`, int64 [items, tokens]
        as `TextTower` pads them, to `features`, float32 [items, dim], not normalised. The
        weights of the model are initialisers without data (their location is external), named
        `PREFIX` and as in its `state_dict`.
    """
    traced: nn.Module
    if tower is Tower.VISION:
        traced, example, axes = _images(model)
    else:
        traced, example, axes = _texts(model, context_length)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        program = torch.onnx.export(
            traced.eval(),
            (example,),
            input_names=[PIXELS if tower is Tower.VISION else IDS],
            output_names=[FEATURES],
            dynamic_shapes=(axes,),
            dynamo=True,
            opset_version=OPSET,
            # What it folds would be made of these weights, and ONNX Runtime folds anyway.
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing; this is a bug")
    _without_weights(program.model, set(model.state_dict()))
    return ir.to_proto(program.model)


class _ImageTower(nn.Module):
    """uint8 [n, height, width, 3] to fp32 [n, dim]."""

    pixels_mean: Tensor
    pixels_std: Tensor

    def __init__(self, model: nn.Module, preprocess: PreprocessCfg) -> None:
        super().__init__()
        self.model: Any = model
        shape = (1, 3, 1, 1)
        self.register_buffer("pixels_mean", 255 * torch.tensor(preprocess.mean).view(shape))
        self.register_buffer("pixels_std", 255 * torch.tensor(preprocess.std).view(shape))

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() - self.pixels_mean) / self.pixels_std
        features: Tensor = self.model.encode_image(images)
        return features


class _TextTower(nn.Module):
    """int64 [n, length] to fp32 [n, dim]."""

    def __init__(self, model: nn.Module, context_length: int) -> None:
        super().__init__()
        self.model = model
        self.text = TextTower(model, context_length)

    def forward(self, ids: Tensor) -> Tensor:
        return self.text.run(ids)


def _images(model: nn.Module) -> tuple[nn.Module, Tensor, dict[int, Any]]:
    visual: Any = model.visual
    size = visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    traced = _ImageTower(model, PreprocessCfg(**visual.preprocess_cfg))
    return traced, example, {0: torch.export.Dim("items")}


def _texts(model: nn.Module, context_length: int) -> tuple[nn.Module, Tensor, dict[int, Any]]:
    traced = _TextTower(model, context_length)
    axes: dict[int, Any] = {0: torch.export.Dim("items")}
    if traced.text.trim is Trim.NONE:
        return traced, torch.ones(2, context_length, dtype=torch.int64), axes
    # The bound decides which code is traced; the graph takes the whole context too.
    axes[1] = torch.export.Dim("tokens", max=context_length - 1)
    return traced, torch.full((2, min(9, context_length - 1)), 2), axes


def _without_weights(model: ir.Model, weights: set[str]) -> None:
    """Leaves out the data of weights, and initialisers that no node uses."""
    initializers = model.graph.initializers
    for name, value in list(initializers.items()):
        tensor = value.const_value
        if not value.uses():
            initializers.pop(name)
        elif tensor is not None and name.removeprefix(PREFIX) in weights:
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(
                "weights", None, None, tensor.dtype, shape=shape, name=name
            )
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None


def main() -> None:
    """Writes the graph of a stored version's tower."""
    folder, tower, out = Path(sys.argv[1]), Tower(sys.argv[2]), Path(sys.argv[3])
    end_with(int(sys.argv[4]))  # it can't notice while torch works
    os.nice(10)
    logging.basicConfig(level=logging.ERROR)
    config = OpenClipConfig.from_json((folder / CONFIG_FILE).read_bytes())
    model = build_model(config, folder)
    graph = export_graph(model, tower, config.context_length)
    write_atomically(out, graph.SerializeToString())


if __name__ == "__main__":
    main()
