from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from hotclip_examples.emoji import concept_name, load_concepts, render
from hotclip_examples.mini.captions import LANGUAGES, load_captions
from hotclip_examples.mini.card import write_card
from hotclip_examples.mini.drawings import names_to_codes, slug
from hotclip_examples.mini.export import save_model, write_config
from hotclip_examples.mini.recipe import CONTEXT, MODEL, PREPROCESS, TRAIN, VOCABULARY
from hotclip_examples.mini.tokenizer import END, PAD, save_tokenizer, train_tokenizer
from hotclip_server.encoding.architecture import CONFIG_FILE, OpenClipConfig
from hotclip_server.encoding.tokenizer import (
    PROBES,
    SETTINGS_FILE,
    FastTokenizer,
    load_tokenizer,
    tokenizer_files,
)
from hotclip_server.training.clip import clip_of, load_clip
from hotclip_server.training.config import TrainConfig
from hotclip_server.training.evaluate import TEXT_TO_IMAGE, Evaluator
from hotclip_server.training.pairs import MemoryPairs, Pair

BUILTIN = Path(__file__).parents[3] / "server/hotclip_server/encoding/builtin/mini"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A node_modules folder with names and keywords of two concepts."""
    rows = [
        {"label": "dog", "hexcode": "1F415", "tags": ["pet", "animal"]},
        {"label": "flag: Guyana", "hexcode": "1F1EC-1F1FE", "tags": ["GY", "flag"]},
    ]
    for language in ("en", *LANGUAGES):
        folder = tmp_path / "emojibase-data" / language
        folder.mkdir(parents=True)
        own = [{**row, "label": f"{row['label']} {language}"} for row in rows]
        data = rows if language == "en" else own
        (folder / "data.json").write_text(json.dumps(data), "utf-8")
    shortcodes = tmp_path / "emojibase-data" / "en" / "shortcodes"
    shortcodes.mkdir()
    codes = {"1F415": ["dog2", "hound"], "1F1EC-1F1FE": "flag_gy"}
    (shortcodes / "github.json").write_text(json.dumps(codes), "utf-8")
    return tmp_path


def test_captions_are_names_and_keywords_without_german(modules: Path):
    captions = load_captions(modules)
    assert "de" not in LANGUAGES
    assert len(captions) == 1906
    assert set(captions["1F415"]) >= {"dog", "dog fr", "dog pl"}
    assert any("pet" in text for text in captions["1F415"])
    assert "flag guyana es" in captions["1F1EC-1F1FE"]
    assert captions == load_captions(modules)


def test_drawings_are_matched_by_any_name(modules: Path):
    by_name = names_to_codes(modules)
    assert by_name[slug("hound")] == by_name[slug("Dog")] == "1F415"
    assert by_name[slug("flag-for-guyana")] == "1F1EC-1F1FE"
    assert slug("Côte d’Ivoire") == "cotedivoire"


def test_tokenizer_keeps_any_text_and_ends_with_the_highest_number(tmp_path: Path):
    tokenizer = train_tokenizer({"dog", "cat", "hot dog"}, 300)
    save_tokenizer(tokenizer, tmp_path, CONTEXT)
    write_config(tmp_path)
    loaded = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    tokens = loaded(["Straße", "hot dog", "犬" * 40])
    assert tokens.shape == (3, CONTEXT)
    assert int(tokens.max()) == tokenizer.token_to_id(END) == tokenizer.get_vocab_size() - 1
    assert int(tokens[1, -1]) == tokenizer.token_to_id(PAD) == 0
    ends = (tokens == tokenizer.token_to_id(END)).sum(dim=1)
    assert ends.tolist() == [1, 1, 1]  # also where the text was cut
    assert tokenizer.decode(tokens[0].tolist()).strip() == "straße"


def test_export_loads_again_as_fp16_rounded_weights(tmp_path: Path):
    save_tokenizer(train_tokenizer({"dog"}, VOCABULARY), tmp_path, CONTEXT)
    write_config(tmp_path)
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    open_clip.model.set_model_preprocess_cfg(model, PREPROCESS)
    clip = clip_of(model, open_clip.get_tokenizer(f"local-dir:{tmp_path}"))
    save_model(clip, tmp_path)
    loaded = load_clip(tmp_path)
    assert (
        loaded.preprocess.mean == tuple(PREPROCESS["mean"]) or loaded.preprocess.mean == [0.5] * 3
    )
    for name, tensor in clip.model.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(loaded.model.state_dict()[name], expected), name
    with torch.no_grad():
        clip.model.logit_scale.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        save_model(clip, tmp_path)


def test_card_states_metrics_and_licences(tmp_path: Path):
    measures = ("hit_at_1", "hit_at_10", "reciprocal_rank")
    kinds = ("colour_english", "line_art_english", "colour_german")
    scores = {f"openmoji_{k}_{m}": 0.125 for k in kinds for m in measures}
    write_card(tmp_path, TRAIN, scores, drawings=19000)
    card = (tmp_path / "MODEL_CARD.md").read_text("utf-8")
    assert "| English name, OpenMoji colour | 0.125 | 0.125 | 0.125 |" in card
    assert "CC BY-SA 4.0" in card
    facts = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    assert facts["metrics"] == scores
    assert facts["training"]["learning_rate"] == TRAIN.learning_rate


def test_builtin_mini_is_small_and_scores_what_its_card_says(tmp_path: Path):
    files = [file for file in BUILTIN.iterdir() if file.suffix != ".py"]
    assert sum(file.stat().st_size for file in files) <= 16 * 2**20
    config = json.loads((BUILTIN / "open_clip_config.json").read_text("utf-8"))
    assert config == {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    facts = json.loads((BUILTIN / "metrics.json").read_text("utf-8"))
    # What the recipe says; a setting that the card is too old to know has its default.
    known = json.loads(json.dumps(asdict(TrainConfig()))) | facts["training"]
    assert known == json.loads(json.dumps(asdict(TRAIN)))
    stated = facts["metrics"]
    clip = load_clip(BUILTIN)
    drawings = {c.code: render(c.code, "openmoji", 64) for c in load_concepts()}
    pairs = [Pair(c.code, concept_name(c, "en"), c.code) for c in load_concepts()]
    metrics = Evaluator(clip, MemoryPairs(pairs, drawings)).evaluate(clip).metrics
    hits = metrics[f"{TEXT_TO_IMAGE}_hit_at_10"]
    assert hits == pytest.approx(stated["openmoji_colour_english_hit_at_10"], abs=0.01)
    assert hits >= 0.40


def test_builtin_mini_tells_images_apart():
    clip = load_clip(BUILTIN)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    pixels = torch.stack([clip.pixels(Image.fromarray(picture)) for picture in pictures])
    with torch.inference_mode():
        features = clip.model.encode_image(clip.normalise(pixels.float() / 255))
    assert torch.isfinite(features).all()
    assert features.shape == (4, MODEL["embed_dim"])


def test_builtin_mini_has_the_tokenizer_that_an_import_would_make(tmp_path: Path):
    config = OpenClipConfig.from_json((BUILTIN / CONFIG_FILE).read_bytes())
    tokenizer = open_clip.get_tokenizer(f"local-dir:{BUILTIN}")
    tokenizer_files(tokenizer, config, tmp_path)
    made_files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made_files == {name: (BUILTIN / name).read_bytes() for name in made_files}
    assert SETTINGS_FILE in made_files
    shipped = load_tokenizer(config, BUILTIN)
    assert isinstance(shipped, FastTokenizer)
    for text in (*PROBES, *(concept_name(c, "en") for c in load_concepts())):
        expected = tokenizer([text])[0].tolist()
        assert shipped.ids(text).tolist() == expected
