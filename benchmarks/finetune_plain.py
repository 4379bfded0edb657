"""open_clip's own training loop, as `python -m open_clip_train.main` runs it on one device.

    load      {folder, corpus, device, batch, accumulate, workers}
    features  {count}        → writes what check compares with
    decoded   {seconds}      → rate; tensors in memory
    jpeg      {epochs}       → rate; files, decoded by worker processes

`train_one_epoch` is the library's; the optimizer, its groups and the clipping are those of its
main program, with fp32 and texts of the whole context.
"""

import io
import math
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip_train.scheduler import const_lr
from open_clip_train.train import train_one_epoch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.finetune_corpus import pairs, write_features
from benchmarks.worker import obey

RATE, DECAY, BETAS, CLIP = 1e-5, 0.05, (0.9, 0.98), 1.0


class Files(Dataset[tuple[Tensor, Tensor]]):
    """As open_clip's CsvDataset: opens, transforms and tokenises one item at a time."""

    def __init__(self, known: Sequence[tuple[str, bytes]], transform: Any, tokenizer: Any) -> None:
        self._known = known
        self._transform = transform
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        caption, data = self._known[at]
        return self._transform(Image.open(io.BytesIO(data))), self._tokenizer([caption])[0]


class Data:
    """What `train_one_epoch` asks of its data."""

    def __init__(self, loader: Any, samples: int) -> None:
        self.dataloader = loader
        loader.num_batches, loader.num_samples = len(loader), samples

    def set_epoch(self, epoch: int) -> None:
        """One process shuffles by itself."""


class Plain:
    """The commands."""

    def load(self, told: dict[str, Any]) -> dict[str, Any]:
        name = f"local-dir:{told['folder']}"
        self._model, _, _ = open_clip.create_model_and_transforms(name, output_dict=True)
        self._model.to(told["device"])
        self._tokenizer = open_clip.get_tokenizer(name)
        self._known = pairs(Path(told["corpus"]))
        self._told = told
        self._epoch = 0
        described = PreprocessCfg(**self._model.visual.preprocess_cfg)
        self._train = image_transform_v2(described, is_train=True)
        self._plain = image_transform_v2(described, is_train=False)
        named = list(self._model.named_parameters())
        bare = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n]
        known = {id(p) for p in bare}
        rest = [p for _, p in named if id(p) not in known]
        groups = [{"params": bare, "weight_decay": 0.0}, {"params": rest, "weight_decay": DECAY}]
        self._optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
        self._ready: Data | None = None
        return {}

    def features(self, told: dict[str, Any]) -> dict[str, Any]:
        some = self._known[: told["count"]]
        self._model.eval()
        with torch.no_grad():
            pixels = torch.stack([self._plain(Image.open(io.BytesIO(data))) for _, data in some])
            image = self._model.encode_image(pixels.to(self._told["device"]))
            tokens = self._tokenizer([caption for caption, _ in some])
            text = self._model.encode_text(tokens.to(self._told["device"]))
        write_features(Path(self._told["corpus"]), image.cpu().numpy(), text.cpu().numpy())
        return {}

    def decoded(self, told: dict[str, Any]) -> dict[str, Any]:
        if self._ready is None:
            files = Files(self._known, self._train, self._tokenizer)
            images, texts = zip(*(files[at] for at in range(len(files))), strict=True)
            self._ready = self._data(TensorDataset(torch.stack(images), torch.stack(texts)), 0)
            self._one_epoch(self._ready)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < told["seconds"] or not done:
            done += self._one_epoch(self._ready)
        return {"rate": done / (time.perf_counter() - began)}

    def jpeg(self, told: dict[str, Any]) -> dict[str, Any]:
        data = self._data(Files(self._known, self._train, self._tokenizer), self._told["workers"])
        began = time.perf_counter()
        done = sum(self._one_epoch(data) for _ in range(told["epochs"]))
        return {"rate": done / (time.perf_counter() - began)}

    def _data(self, dataset: Any, workers: int) -> Data:
        micro = self._told["batch"] // self._told["accumulate"]
        loader = DataLoader(
            dataset, batch_size=micro, shuffle=True, num_workers=workers, drop_last=True
        )
        return Data(loader, len(self._known))

    def _one_epoch(self, data: Data) -> int:
        """Samples of it."""
        arguments = Namespace(
            device=self._told["device"],
            precision="fp32",
            distill=False,
            accum_freq=self._told["accumulate"],
            skip_scheduler=False,
            grad_clip_norm=CLIP,
            horovod=False,
            rank=0,
            local_rank=0,
            log_local=False,
            log_every_n_steps=100,
            batch_size=self._told["batch"] // self._told["accumulate"],
            world_size=1,
            wandb=False,
        )
        steps = math.inf
        schedule = const_lr(self._optimizer, RATE, 1, steps)
        loss = open_clip.ClipLoss()
        train_one_epoch(
            self._model,
            {"train": data},
            loss,
            self._epoch,
            self._optimizer,
            None,
            schedule,
            None,
            arguments,
        )
        self._epoch += 1
        whole = len(data.dataloader) // self._told["accumulate"]
        return int(whole * self._told["batch"])


def main() -> None:
    worker = Plain()
    commands = {"load": worker.load, "features": worker.features}
    obey({**commands, "decoded": worker.decoded, "jpeg": worker.jpeg})


if __name__ == "__main__":
    main()
