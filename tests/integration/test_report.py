"""The page of a job, from a real server: while it runs, at its end, and without its data."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.drawings import drawn_pairs
from support.server import ServerProcess
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hotclip
from hotclip import Pair

EVIL = "<script>alert(1)</script>"
PICTURE = re.compile(r'src="data:image/webp;base64,([^"]+)"')


@pytest.fixture(scope="module")
def run(server: ServerProcess) -> Iterator[hotclip.Run]:
    """A fine-tune that has ended."""
    with hotclip.Client(server.address) as client:
        pairs = [Pair(f"{EVIL} {text}", image) for image, text in drawn_pairs()]
        tuned = client.finetune(
            pairs,
            val_split=0.5,
            max_steps=4,
            batch_size=8,
            learning_rate=1e-4,
            activation="never",
            wise_ft=0.5,
            name="reported",
            trackers=["tensorboard"],
            description=EVIL,
        )
        tuned.wait()
        yield tuned


def test_curves_tables_and_pictures_are_on_it(
    run: hotclip.Run, server: ServerProcess, tmp_path: Path
) -> None:
    with hotclip.Client(server.address) as client:
        written = client.get_job("reported").report(tmp_path)
    assert written == tmp_path / "reported.html"
    html = written.read_text("utf-8")
    assert EVIL not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 1
    for text in ("SUCCEEDED", "reciprocal rank", "Searches, before and after", "held out", "Loss"):
        assert text in html
    assert html.count("0.5 (stored)") == 1
    assert "Mean reciprocal rank between base and trained weights" in html
    pictures = [base64.b64decode(found) for found in PICTURE.findall(html)]
    assert len(pictures) >= 10
    assert max(Image.open(io.BytesIO(p)).size[0] for p in pictures) <= 96
    assert "http:" not in html
    assert "https:" not in html


async def test_the_other_client_and_a_job_that_has_just_begun(
    run: hotclip.Run, server: ServerProcess, tmp_path: Path
) -> None:
    async with hotclip.AsyncClient(server.address) as client:
        dataset = (await client.list_datasets())[0]
        job = await client.evaluate(dataset.name, name="measured")
        early = await job.report(tmp_path / "deep" / "page.html")
        assert early.read_text("utf-8").endswith("</html>")
        await job.wait()
        late = await job.report(early)
        assert "Mean reciprocal rank 0." in late.read_text("utf-8")
        assert [path.name for path in early.parent.iterdir()] == ["page.html"]


def test_tensorboard_is_told_below_the_data_directory(
    run: hotclip.Run, server: ServerProcess
) -> None:
    folder = server.data_dir / "trackers" / "tensorboard" / f"reported-{run.id}"
    found, ends = EventAccumulator(str(folder)), time.monotonic() + 30
    while "best/monitor" not in found.Reload().Tags()["scalars"]:
        assert time.monotonic() < ends, server.log
        time.sleep(0.1)
    assert [event.step for event in found.Scalars("train/loss")][-1] == 4
    assert found.Scalars("best/monitor")[0].value == pytest.approx(run.metrics()["monitor"])
    assert all("tracker" not in line.message for line in run.logs())


def test_data_that_is_deleted_is_missed(server: ServerProcess, tmp_path: Path) -> None:
    with hotclip.Client(server.address) as client:
        own = client.upload_dataset("gone", [Pair(f"gone {t}", i) for i, t in drawn_pairs()])
        job = client.evaluate("gone")
        job.wait()
        client.delete_dataset("gone")
        html = job.report(tmp_path / "page.html").read_text("utf-8")
        assert "Deleted since" in html
        assert own.id in html
        assert not PICTURE.search(html)
        job.delete()
        with pytest.raises(hotclip.errors.NotFound):
            job.report(tmp_path / "page.html")
