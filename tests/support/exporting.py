"""Stored versions of small models, and what exports them, in a test's own process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
from safetensors.torch import save_file
from support.hub_files import xlm_roberta
from support.small_models import model_cfg, random_model, write_model

from hotclip_server.artifacts.export import Exporter
from hotclip_server.artifacts.records import ArtifactFormat, ArtifactRecord, Origin
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.encoding.architecture import CONFIG_FILE, OpenClipConfig, build_model
from hotclip_server.encoding.engines.onnx_export import export_graph
from hotclip_server.encoding.engines.onnx_files import OnnxFiles
from hotclip_server.encoding.protocol import Tower
from hotclip_server.models.delta import write_delta
from hotclip_server.models.store import VersionStore
from hotclip_server.storage.database import Database


class TracedHere:
    """Implements `Graphs` without a process of its own."""

    def graph(self, version_folder: Path, tower: Tower) -> bytes:
        config = OpenClipConfig.from_json((version_folder / CONFIG_FILE).read_bytes())
        model = build_model(config, version_folder)
        made: onnx.ModelProto = export_graph(model, tower, config.context_length)
        return made.SerializeToString()


class Workshop:
    """A store of versions, one of artifacts, and an exporter. Close it."""

    def __init__(self, folder: Path) -> None:
        self.models = folder / "models"
        self._database = Database(f"sqlite:///{folder / 'hotclip.db'}")
        self._database.open()
        self._pool = ThreadPoolExecutor(1)
        self.artifacts = ArtifactStore(folder / "artifacts", self._database, self._pool)
        self.artifacts.open()
        self.versions = VersionStore(
            folder / "versions", models_dir=self.models, artifacts=self.artifacts
        )
        self.exporter = Exporter(
            self.versions, self.artifacts, OnnxFiles(self.versions, TracedHere()), write_delta
        )

    def close(self) -> None:
        self._pool.shutdown()
        self._database.close()

    def make(self, kind: str, **options: Any) -> str:
        """Id of a stored version; kinds of `model_cfg`, and "xlm-roberta"."""
        write = write_multilingual if kind == "xlm-roberta" else write_model
        write(self.models / kind, kind, **options)
        return self.versions.import_source(f"local:{kind}").id

    def export(
        self, version: str, format_: ArtifactFormat = ArtifactFormat.OPEN_CLIP, base: str = ""
    ) -> ArtifactRecord:
        return self.exporter.export(format_, Origin(version=version, base_version=base))


def write_multilingual(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """An open_clip local-dir whose text tower is a small XLM-RoBERTa."""
    xlm_roberta(folder, layers=2, width=64)
    settings = model_cfg()
    settings["text_cfg"] = {
        "hf_model_name": "small/xlm-roberta",
        "hf_tokenizer_name": "small/xlm-roberta",
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": "mlp",
        "context_length": 24,
    }
    config = OpenClipConfig(model=settings, preprocess={"mean": [0.4] * 3, "std": [0.3] * 3})
    (folder / CONFIG_FILE).write_bytes(config.to_json())
    state = random_model(config, folder, seed=seed).state_dict()
    save_file(state, folder / "open_clip_model.safetensors")
    return folder
