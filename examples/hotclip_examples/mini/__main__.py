"""Train `builtin:mini`: `make train-mini` or `python -m hotclip_examples.mini`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import torch

from hotclip_examples.mini.captions import load_captions
from hotclip_examples.mini.card import write_card
from hotclip_examples.mini.drawings import code_of_key, load_drawings
from hotclip_examples.mini.export import save_model, write_config
from hotclip_examples.mini.recipe import CONTEXT, PREPROCESS, TRAIN, VOCABULARY
from hotclip_examples.mini.score import HeldOut
from hotclip_examples.mini.tokenizer import save_tokenizer, train_tokenizer
from hotclip_server.encoding.architecture import CONFIG_FILE, OpenClipConfig
from hotclip_server.encoding.tokenizer import tokenizer_files
from hotclip_server.training.clip import Clip, clip_of, load_clip
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.events import EpochEnd, Step
from hotclip_server.training.pairs import MemoryPairs, Pair
from hotclip_server.training.trainer import train


def main() -> int:
    arguments = _parser().parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    config = replace(TRAIN, epochs=arguments.epochs or TRAIN.epochs)

    captions = load_captions(arguments.npm)
    drawings = load_drawings(arguments.npm, arguments.cache)
    pairs = [
        Pair(key, text, group=code_of_key(key))
        for key in drawings
        for text in captions[code_of_key(key)]
    ]
    print(f"{len(drawings)} drawings, {len(pairs)} pairs", flush=True)
    clip = new_model(out, {text for caption in captions.values() for text in caption})
    held_out = HeldOut(clip, arguments.npm, arguments.cache)

    def score(event: EpochEnd) -> None:
        if event.epoch % arguments.score_every == 0:
            save_model(clip, out)
            print(json.dumps({"loss": event.mean_loss} | held_out.scores(clip)), flush=True)

    run(clip, MemoryPairs(pairs, drawings), config, score)
    save_model(clip, out)
    scores = held_out.scores(load_clip(out))  # of the rounded weights
    write_card(out, config, scores, drawings=len(drawings))
    print(json.dumps(scores, indent=2))
    return 0


def new_model(folder: Path, texts: set[str]) -> Clip:
    """Tokenizer, configuration and random weights; `folder` is then an open_clip local-dir."""
    save_tokenizer(train_tokenizer(texts, VOCABULARY), folder, CONTEXT)
    write_config(folder)
    name = f"local-dir:{folder}"
    config = OpenClipConfig.from_json((folder / CONFIG_FILE).read_bytes())
    # As an import writes it: what is imported from here is then only copied.
    tokenizer_files(open_clip.get_tokenizer(name), config, folder)
    torch.manual_seed(TRAIN.seed)
    model = open_clip.create_model(name, load_weights=False)
    open_clip.model.set_model_preprocess_cfg(model, PREPROCESS)
    return clip_of(model.to(memory_format=torch.channels_last), open_clip.get_tokenizer(name))


def run(
    clip: Clip, data: MemoryPairs, config: TrainConfig, at_epoch_end: Callable[[EpochEnd], None]
) -> None:
    """Train, telling how it goes."""
    began = time.monotonic()
    for event in train(clip, data, config):
        match event:
            case Step() if event.step % 20 == 0:
                print(
                    f"step {event.step}/{event.steps} loss {event.loss:.3f} "
                    f"scale {event.logit_scale:.1f} norm {event.grad_norm:.2f} "
                    f"{event.samples_per_second:.0f}/s",
                    flush=True,
                )
            case EpochEnd():
                minutes = (time.monotonic() - began) / 60
                print(f"epoch {event.epoch}/{event.epochs}, {minutes:.1f} minutes", flush=True)
                at_epoch_end(event)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hotclip_examples.mini", description=__doc__)
    modules = Path(__file__).parent / "node_modules"
    parser.add_argument("--npm", type=Path, default=modules, help="node_modules with the data")
    parser.add_argument("--out", type=Path, default=Path("build/mini"), help="folder made")
    parser.add_argument("--cache", type=Path, default=Path(".cache/emoji"), help="drawn images")
    parser.add_argument("--epochs", type=int, help="for a quick trial")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--score-every", type=int, default=4, help="epochs between scores")
    return parser


if __name__ == "__main__":
    sys.exit(main())
