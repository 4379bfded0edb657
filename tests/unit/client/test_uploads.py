"""One upload over connections that break: nothing is lost, doubled or held without bound."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotclip import DatasetReport, UploadProgress, _digest
from hotclip._dataset_file import rows_of
from hotclip._pairs import BadRow, Tolerance
from hotclip._server import Limits
from hotclip._upload_bar import UploadBar, shown
from hotclip._uploads import UploadSession
from hotclip.errors import DataLoss, FailedPrecondition, InvalidArgument
from hotclip_proto.v1 import dataset_pb2

Part = dataset_pb2.UploadDatasetRequest
Reply = dataset_pb2.UploadDatasetResponse
WINDOW = 5_000


class Server:
    """Keeps parts as the real one does: what is not acknowledged may be lost."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.parts: list[Part] = []
        self.digests = [_digest.START]
        self.safe = 0

    def accept(self) -> Reply:
        lost = self.chance.randint(self.safe, len(self.parts))
        del self.parts[lost:], self.digests[lost + 1 :]
        self.safe = lost
        accepted = dataset_pb2.UploadAccepted(
            upload="up-1", parts=lost, digest=self.digests[-1].hex(), window_bytes=WINDOW
        )
        return Reply(accepted=accepted)

    def take(self, part: Part) -> Reply | None:
        if part.HasField("close"):
            assert part.close.digest == self.digests[-1].hex()
            return Reply(dataset=dataset_pb2.Dataset(id="ds-1"))
        self.parts.append(part)
        self.digests.append(_digest.after(self.digests[-1], part))
        return None

    def acknowledge(self) -> Reply:
        self.safe = len(self.parts)
        return Reply(acknowledged=dataset_pb2.UploadAcknowledged(parts=self.safe))


def session(pairs: list[tuple[str, bytes]], resume: str = "") -> UploadSession:
    return UploadSession("n", "", rows_of(pairs), Limits(), Tolerance(), resume=resume)


def pairs_of(count: int) -> list[tuple[str, bytes]]:
    return [(f"text {i}", bytes([i % 256, i // 256]) * (1 + 37 * i % 900)) for i in range(count)]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 200), seed=st.integers(0, 1 << 20), patience=st.integers(1, 60))
def test_breaks_lose_and_double_nothing(count: int, seed: int, patience: int) -> None:
    pairs, chance = pairs_of(count), random.Random(seed)
    server, upload = Server(chance), session(pairs)
    rows = [0]
    while upload.dataset is None:
        if chance.random() < 0.1:  # another process goes on
            upload = session(pairs, resume="up-1")
        left = chance.randint(1, patience)  # messages until the connection breaks
        patience += 1
        assert upload.opening().open.upload in ("", "up-1")
        upload.take(server.accept())
        unacknowledged = 0
        while left and upload.dataset is None:
            if upload.room:
                assert unacknowledged < WINDOW
                part = upload.next()
                unacknowledged += part.ByteSize()
                left -= 1
                if (reply := server.take(part)) is not None:
                    upload.take(reply)
            else:
                upload.take(server.acknowledge())
                unacknowledged = 0
        rows.append(upload.progress.rows)
    kept = {p.image.key: p.image.data for p in server.parts if p.HasField("image")}
    found = [(p.text, kept[p.image_key]) for part in server.parts for p in part.pairs.pairs]
    assert found == pairs
    assert rows[-1] == count
    assert len(kept) == sum(p.HasField("image") for p in server.parts)


def test_a_server_that_forgets_is_found_out() -> None:
    server, upload = Server(random.Random(0)), session(pairs_of(90))
    upload.take(server.accept())
    while upload.room:
        server.take(upload.next())
    assert upload.take(server.acknowledge())
    assert not upload.take(server.acknowledge())
    del server.parts[:], server.digests[1:]
    server.safe = 0
    with pytest.raises(DataLoss):
        upload.take(server.accept())


@pytest.mark.parametrize("other", [pairs_of(90)[::-1], pairs_of(3)])
def test_other_data_cannot_go_on(other: list[tuple[str, bytes]]) -> None:
    server, upload = Server(random.Random(0)), session(pairs_of(90))
    upload.take(server.accept())
    while upload.room:
        server.take(upload.next())
    server.acknowledge()
    with pytest.raises(FailedPrecondition, match="UPLOAD_CHANGED"):
        session(other, resume="up-1").take(server.accept())


def test_a_refusal_names_every_listed_row() -> None:
    listed = [
        dataset_pb2.RejectedRow(where=f"line {i}", field="text", reason="x") for i in range(50)
    ]
    told = dataset_pb2.DatasetReport(rows=99, bad_rows=70, listed=listed)
    with pytest.raises(InvalidArgument) as caught:
        session([]).take(Reply(refused=told))
    assert len(caught.value.fields) == 50
    text = str(caught.value)
    assert "70 of 99 rows are bad: line 0.text: x; " in text
    assert text.endswith("line 19.text: x; and 50 more")


def test_the_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def at(rows: int, total: int | None, *, done: bool = False) -> UploadProgress:
        return UploadProgress(
            upload="up-1", rows=rows, total_rows=total, images=rows, bytes=rows << 20, done=done
        )

    now = [0.0]
    out = Terminal()
    bar = UploadBar("set", stream=out, clock=lambda: now[0])
    for rows in range(5):
        now[0] += 0.06
        bar(at(rows, 8))
    assert out.getvalue().count("\r") == 2
    bar(at(8, 8, done=True))
    assert out.getvalue().endswith("100% 8/8 rows  8 images  8.0 MiB  26.7 MiB/s\n")
    quiet = io.StringIO()
    bar = UploadBar("set", stream=quiet, clock=lambda: now[0])
    bar(at(1, None))
    now[0] += 11
    bar(at(2, None))
    bar(at(3, None, done=True))
    assert [line.split("  ")[0] for line in quiet.getvalue().splitlines()] == [
        *("set 2 rows", "set 3 rows")
    ]
    assert shown(bar, "x") is bar
    shown(False, "x")(at(1, 1))


def test_a_report_reads_well() -> None:
    report = DatasetReport(
        rows=5,
        bad_rows=30,
        listed=tuple(BadRow(f"line {i}", "text", "empty") for i in range(25)),
        duplicate_pairs=1,
        images_with_several_texts=2,
        texts_with_several_images=3,
        most_frequent_text="a\nfox",
        most_frequent_text_pairs=4,
        min_width=1,
        max_width=20,
        min_height=3,
        max_height=40,
        min_image_bytes=512,
        max_image_bytes=2048,
        formats={"PNG": 4, "JPEG": 1},
        notes=("p.csv: columns that are not used: id",),
    )
    text = str(report)
    for part in (
        *("images                     1 JPEG, 4 PNG", "1…20 × 3…40 pixels", "0.5…2.0 KiB"),
        *("'a fox', 4 ×", "note: p.csv: columns", "bad: line 19 (text): empty", "bad: and 10 more"),
    ):
        assert part in text
    assert "line 20" not in text
