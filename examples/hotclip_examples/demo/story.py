"""What the demonstration does, in order, and what it measured."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hotclip
from hotclip_examples.demo import load as traffic
from hotclip_examples.demo.golden import Golden, golden_vectors, separation
from hotclip_examples.demo.quality import Searched, search_all
from hotclip_examples.emoji import EmojiPair, EmojiTask, emoji_task, pair_image

COLLECTION = "openmoji"
JOB = "german-names"
PICTURE_SIZE = 64
POOL = 48
"""Texts and images that the background load asks for."""
CONTROL_S = 5.0
"""Of undisturbed load, to compare the flip with."""
AROUND_FLIP_S = 1.5
"""Before and after the flip within which the longest gap is looked for."""
EVALUATED_SHARE = 0.1
"""Of the drawings in our own style that might be trained on: the best epoch is chosen by them.
Their names are trained on with the other style, as are those of the queries at the end."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How much to do and how to train."""

    concepts: int = 1906
    epochs: int = 16
    learning_rate: float = 1e-3
    batch_size: int = 128
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything measured; moments are seconds of `time.monotonic`."""

    task: EmojiTask
    english: Searched
    before: Searched
    after: Searched
    english_after: Searched
    answers: Sequence[traffic.Answer]
    failures: Sequence[str]
    mixed: Sequence[traffic.Answer]
    separation: float
    tolerance: float
    measurements: Sequence[hotclip.Measurement]
    began: float
    train_began: float
    train_ended: float
    flip_began: float
    flip_ended: float
    longest_gap_ms: float
    control_gap_ms: float

    @property
    def overlapping(self) -> int:
        """Requests that were under way while the flip was."""
        began, ended = self.flip_began, self.flip_ended
        return sum(a.began < ended and a.ended > began for a in self.answers)


def say(text: str) -> None:
    """One line for the person who watches."""
    print(text, flush=True)


def tell(client: hotclip.Client, versions: Path, pictures: Path, recipe: Recipe) -> Outcome:
    """Runs the whole story against a server whose versions are stored below `versions`."""
    task = emoji_task("de", seed=recipe.seed, concepts=recipe.concepts)
    english_task = emoji_task("en", seed=recipe.seed, concepts=recipe.concepts)
    images = {
        pair.image_key: pair_image(pair, PICTURE_SIZE, pictures)
        for pair in (*task.train, *task.index)
    }
    say(f"rendered {len(images):,} drawings")

    base = client.get_model().live_version
    client.create_collection(COLLECTION)
    indexed = time.monotonic()
    client.upsert(
        COLLECTION,
        [(p.concept, images[p.image_key], {"name": p.text}) for p in task.index],
        timeout=600,
    )
    say(f"indexed {len(task.index):,} in {time.monotonic() - indexed:.1f} s, version {base}")
    english = search_all(client, COLLECTION, english_task.queries)
    before = search_all(client, COLLECTION, task.queries)
    say(f"mRR in English {english.quality.mrr:.3f}, in German {before.quality.mrr:.3f}")

    pool = _pool(task, images, recipe.seed)
    # Without a pause around the flip, so that requests are under way while it happens, and in
    # the control window, so that the two can be compared.
    load = traffic.Load(client=client, pool=pool, collection=COLLECTION, pause_s=0.0)
    began = time.monotonic()
    load.start()
    try:
        time.sleep(CONTROL_S)
        load.pause_s = traffic.PAUSE_S
        train_began = time.monotonic()
        learnt, chosen_by = _divided(task.train, recipe.seed)
        run = client.finetune(
            [hotclip.Pair(p.text, images[p.image_key], group=p.concept) for p in learnt],
            eval_data=[
                hotclip.Pair(p.text, images[p.image_key], group=p.concept) for p in chosen_by
            ],
            method="full",
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            batch_size=recipe.batch_size,
            activation="never",
            seed=recipe.seed,
            name=JOB,
        )
        tuned = run.wait(progress=True).result_version
        train_ended = time.monotonic()
        say(f"trained version {tuned} in {train_ended - train_began:.0f} s while serving")
        client.reindex(COLLECTION, tuned, name="german-index").wait(progress=True)
        load.pause_s = 0.0
        time.sleep(AROUND_FLIP_S)
        flip_began = time.monotonic()
        client.activate(tuned, collections=[COLLECTION])
        flip_ended = time.monotonic()
        say(f"weights and index flipped together in {(flip_ended - flip_began) * 1e3:.0f} ms")
        time.sleep(AROUND_FLIP_S)
        load.pause_s = traffic.PAUSE_S
        time.sleep(CONTROL_S)
    finally:
        load.stop()

    after = search_all(client, COLLECTION, task.queries)
    english_after = search_all(client, COLLECTION, english_task.queries)
    index = [images[p.image_key] for p in task.index]
    say(f"checking {len(load.answers):,} answers against plain open_clip")
    golden = {
        version: golden_vectors(versions / version, pool.texts, pool.images, index)
        for version in (base, tuned)
    }
    return Outcome(
        task=task,
        english=english,
        before=before,
        after=after,
        english_after=english_after,
        answers=load.answers,
        failures=load.failures,
        mixed=traffic.mixed_answers(load.answers, pool, golden),
        separation=separation(golden[base], golden[tuned]),
        tolerance=max(truth.tolerance for truth in golden.values()),
        measurements=run.measurements(),
        began=began,
        train_began=train_began,
        train_ended=train_ended,
        flip_began=flip_began,
        flip_ended=flip_ended,
        longest_gap_ms=traffic.longest_gap_ms(
            load.answers, flip_began - AROUND_FLIP_S, flip_ended + AROUND_FLIP_S
        ),
        control_gap_ms=traffic.longest_gap_ms(load.answers, began + 1.0, train_began),
    )


def _divided(pairs: Sequence[EmojiPair], seed: int) -> tuple[list[EmojiPair], list[EmojiPair]]:
    """What is trained on, and what the best epoch is chosen by."""
    ours = [pair for pair in pairs if pair.style == "openmoji"]
    count = max(2, round(EVALUATED_SHARE * len(ours)))
    chosen = {pair.image_key for pair in random.Random(seed).sample(ours, count)}
    learnt = [pair for pair in pairs if pair.image_key not in chosen]
    return learnt, [pair for pair in ours if pair.image_key in chosen]


def _pool(task: EmojiTask, images: dict[str, bytes], seed: int) -> traffic.Pool:
    generator = random.Random(seed)
    size = min(POOL, len(task.queries))
    texts: list[EmojiPair] = generator.sample(task.queries, size)
    shown: list[EmojiPair] = generator.sample(task.index, size)
    return traffic.Pool(
        texts=[pair.text for pair in texts],
        images=[images[pair.image_key] for pair in shown],
        point_ids=[pair.concept for pair in task.index],
    )


__all__ = ["COLLECTION", "JOB", "Golden", "Outcome", "Recipe", "say", "tell"]
