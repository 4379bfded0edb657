"""A tower of an ONNX artifact, run by ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotclip._local import LOCAL_FILE, Encode, Tower
from hotclip.errors import FailedPrecondition, InvalidArgument


def read_onnx(folder: Path, tower: Tower, device: str) -> Encode:
    """See `get_model`."""
    import onnxruntime

    if device != "cpu":
        raise InvalidArgument.field("device", "ONNX Runtime runs on the CPU")
    path = folder / f"{tower}.onnx"
    if not path.is_file() or not (folder / LOCAL_FILE).is_file():
        raise FailedPrecondition(
            f"{folder.name} has no {path.name}: export it as onnx", reason="NOT_ONNX"
        )
    facts = json.loads((folder / LOCAL_FILE).read_bytes())
    texts = None
    if tower == "clip-text":
        if facts["tokenizer"] is None:
            raise FailedPrecondition(
                "the tokenizer of this model needs open_clip", reason="TOKENIZER_UNSUPPORTED"
            )
        from hotclip._local_texts import LocalTokenizer

        texts = LocalTokenizer(folder / "tokenizer.json", facts["tokenizer"], facts["shortening"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    # No thread spins while there is nothing to do.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session: Any = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def encode(items: list[Any]) -> NDArray[np.float32]:
        batch = np.stack(items) if texts is None else texts(items)
        rows: NDArray[np.float32]
        (rows,) = session.run(["embeddings"], {name: batch})
        return rows

    return encode
