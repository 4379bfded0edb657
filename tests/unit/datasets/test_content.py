"""The id of a dataset is its content: not the order, not how it was cut into messages."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from tempfile import mkdtemp

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.drawings import drawn_pairs, key_of
from support.uploads import folders, put, sent, terms

from hotclip_server.datasets.records import DatasetLimits
from hotclip_server.datasets.rows import Row
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.datasets.stored import StoredDataset
from hotclip_server.datasets.upload import DatasetUpload, Staged
from hotclip_server.errors import FailedPrecondition, NotFound

IMAGES = {key_of(image): image for image, _ in drawn_pairs()[:6]}
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda text: bool(text.strip())
)
ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from(sorted(IMAGES)[:4]),
        TEXTS,
        st.sampled_from(["", "a", "ü", "\n"]),
        st.sampled_from(["", "a", "\0"]),
        st.sampled_from([0.0, 0.25, 1.0]),
        st.lists(TEXTS.map("not {}".format), max_size=2).map(tuple),
        st.lists(st.sampled_from(sorted(IMAGES)[4:]), max_size=2).map(tuple),
    ),
    min_size=1,
    max_size=12,
)


def stage(root: Path, rows: list[Row], order: random.Random) -> Staged:
    steps = [*rows, *{key for row in rows for key in row.images}]
    order.shuffle(steps)
    upload = DatasetUpload(Path(mkdtemp(dir=root)), DatasetLimits(), terms())
    images = len(steps) - len(rows)
    while steps:
        step = steps.pop()
        if isinstance(step, str):
            upload.add_image(step, IMAGES[step])
            continue
        together = [step]
        while steps and isinstance(steps[-1], Row) and order.random() < 0.5:
            together.append(steps.pop())
        upload.add_rows(together)
    staged = upload.finish(sent(upload, len(rows), images))
    upload.discard()
    return staged


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=ROWS, seed=st.integers(0, 1000))
def test_order_does_not_matter_and_nothing_is_lost(
    tmp_path: Path, rows: list[Row], seed: int
) -> None:
    order = random.Random(seed)
    first, second = (stage(tmp_path, rows, order) for _ in range(2))
    assert first.dataset_id == second.dataset_id
    assert first.counts == second.counts
    assert first.counts.duplicate_pairs == len(rows) - len(set(rows))
    stored = StoredDataset(first.folder)
    assert {
        Row(
            p.image_key,
            p.text,
            p.group or "",
            p.label or "",
            p.score,
            p.negative_texts,
            p.negative_images,
        )
        for p in stored.pairs
    } == set(rows)
    stored.close()
    fewer = stage(tmp_path, [*rows, Row(rows[0].image_key, rows[0].text + "!")], order)
    assert fewer.dataset_id != first.dataset_id or Row(
        rows[0].image_key, rows[0].text + "!", ""
    ) in set(rows)
    for staged in (first, second, fewer):
        shutil.rmtree(staged.folder)


async def test_uploads_and_deletions_of_the_same_content_at_once(
    store: DatasetStore, tmp_path: Path
) -> None:
    async def store_it() -> str:
        return (await put(store, "same", drawn_pairs()[:4])).id

    async def remove() -> None:
        await asyncio.sleep(random.uniform(0, 0.05))
        try:
            await store.delete("same")
        except (NotFound, FailedPrecondition):
            return

    results = await asyncio.gather(
        *(work() for work in (store_it, store_it, remove, store_it, remove, store_it))
    )
    assert len({result for result in results if result}) == 1
    last = await store_it()
    stored = store.load(last)
    assert len(stored.pairs) == 4
    stored.close()
    assert folders(tmp_path / "datasets") == [last]
