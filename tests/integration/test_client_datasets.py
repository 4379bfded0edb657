"""Datasets through both clients: files of every kind, reports, uploads that outlive a server."""

from __future__ import annotations

import io
import socket
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.drawings import drawn_pairs
from support.server import ServerProcess, start_server

from hotclip import AsyncClient, Client, DatasetFile, Pair, UploadProgress
from hotclip.errors import FailedPrecondition, InvalidArgument, NotFound


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures, and the same six pairs as CSV, as JSON lines and as a WebDataset."""
    rows = ["caption;file"]
    lines = []
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for i, (image, text) in enumerate(drawn_pairs()[:6]):
            (tmp_path / f"{i}.png").write_bytes(image)
            rows.append(f"{text};{i}.png")
            lines.append(f'{{"image": "{i}.png", "text": "{text}"}}')
            for suffix, data in (("png", image), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{i:06}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return tmp_path


async def test_every_kind_of_file_is_the_same_dataset(
    client: Client, server: ServerProcess, folder: Path
) -> None:
    first = client.upload_dataset("kinds", folder / "pairs.csv")
    assert (first.pairs, first.images, first.texts) == (6, 6, 6)
    assert client.upload_dataset("kinds", DatasetFile(folder / "pairs.jsonl")).id == first.id
    async with AsyncClient(server.address) as twin:
        assert (await twin.upload_dataset("kinds", folder / "pairs.tar")).id == first.id
        assert (await twin.upload_dataset("kinds", iter(drawn_pairs()[:6]))).id == first.id
        got = await twin.get_dataset("kinds")
        assert got == client.get_dataset("kinds")
        back = await twin.download_dataset("kinds", folder / "back")
    assert client.upload_dataset("kinds", back).id == first.id
    client.finetune(folder / "pairs.csv", max_steps=1, validate_only=True)  # finds it
    assert [found.name for found in client.list_datasets()] == ["kinds"]
    client.delete_dataset("kinds")


async def test_a_file_that_is_given_as_a_str_is_told_from_a_dataset(
    client: Client, server: ServerProcess, folder: Path
) -> None:
    with pytest.raises(InvalidArgument, match=r"the file of this name is Path"):
        client.finetune(str(folder / "pairs.csv"), validate_only=True)
    async with AsyncClient(server.address) as twin:
        with pytest.raises(InvalidArgument, match=r"the file of this name is Path"):
            await twin.evaluate(str(folder / "pairs.csv"))


async def test_bad_rows_are_listed_and_left_out(
    client: Client, server: ServerProcess, folder: Path
) -> None:
    with (folder / "pairs.csv").open("a") as file:
        file.write("\na gap;9.png\nbroken;broken.png\nbroken again;broken.png\n;0.png\n")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:50])
    with pytest.raises(InvalidArgument) as early:
        client.upload_dataset("bad", folder / "pairs.csv", max_bad_rows=1)
    assert early.value.reason == "PAIRS_INVALID"
    assert [v.field for v in early.value.fields] == ["line 8.image", "line 11.text"]
    with pytest.raises(InvalidArgument) as late:
        client.upload_dataset("bad", folder / "pairs.csv", max_bad_rows=3)
    assert late.value.reason == "DATASET_INVALID"
    fields = ["line 8.image", "line 11.text", "line 9.image", "line 10.image"]
    assert [v.field for v in late.value.fields] == fields
    with pytest.raises(NotFound):
        client.get_dataset("bad")
    async with AsyncClient(server.address) as twin:
        with pytest.raises(InvalidArgument) as same:
            await twin.upload_dataset("bad", folder / "pairs.csv", max_bad_rows=3)
        assert [v.field for v in same.value.fields] == fields
        stored = await twin.upload_dataset("bad", folder / "pairs.csv", max_bad_share=0.4)
    assert stored.pairs == 6
    assert stored.report is not None
    assert (stored.report.rows, stored.report.bad_rows) == (10, 4)
    assert stored.report.formats == {"PNG": 6}
    shown = str(client.get_dataset("bad").report)
    assert "bad: line 9 (image): cannot be decoded" in shown
    assert "bad rows, left out         4" in shown
    assert all(listed.report is None for listed in client.list_datasets())
    client.delete_dataset("bad")


def test_labels_and_negatives_come_back(client: Client, folder: Path) -> None:
    images = [image for image, _ in drawn_pairs()[:3]]
    pairs = [
        Pair("", images[0], label="square"),
        Pair("red circle", images[1], "g", "circle", 0.25, ["blue circle"], [images[2]]),
    ]
    stored = client.upload_dataset("labelled", pairs)
    assert (stored.pairs, stored.images, stored.labels) == (2, 3, 2)
    assert (stored.uncaptioned_pairs, stored.pairs_with_negatives) == (1, 1)
    back = client.download_dataset("labelled", folder / "back")
    assert client.upload_dataset("labelled", back).id == stored.id
    client.delete_dataset("labelled")


def test_a_row_with_a_negative_that_is_no_picture_is_left_out(client: Client, folder: Path) -> None:
    (folder / "6.png").write_bytes(drawn_pairs()[6][0])
    (folder / "text.png").write_text("no picture")
    bad = '{"image": "6.png", "text": "a", "negative_images": ["text.png"]}'
    with (folder / "pairs.jsonl").open("a") as file:
        file.write(f"\n{bad}\n")
    stored = client.upload_dataset("negatives", folder / "pairs.jsonl", max_bad_rows=1)
    assert (stored.pairs, stored.images) == (6, 6)
    assert stored.report is not None
    [row] = stored.report.listed
    assert (row.where, row.field) == ("line 7", "negative_images")
    client.delete_dataset("negatives")


def many(count: int) -> list[tuple[bytes, str]]:
    """Pictures in files of 3 MiB, each its own."""
    images = drawn_pairs()
    return [
        (images[i % 32][0] + i.to_bytes(4) + bytes(3 << 20), f"{images[i % 32][1]} {i}")
        for i in range(count)
    ]


@pytest.mark.slow  # three servers start, one after the other
async def test_an_upload_lives_through_kills_of_the_server(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        flags = ("--device", "cpu", "--port", str(probe.getsockname()[1]))
    with ExitStack() as stack:
        servers = [stack.enter_context(start_server(tmp_path / "data", *flags))]
        client = stack.enter_context(Client(servers[0].address))
        seen = list[UploadProgress]()

        def kill(at: UploadProgress) -> None:
            seen.append(at)
            if len(servers) < 3 and at.rows > 3 * len(servers):
                servers[-1].kill()
                servers.append(stack.enter_context(start_server(tmp_path / "data", *flags)))

        stored = client.upload_dataset("lasting", many(16), progress=kill)
        assert len(servers) == 3
        assert stored.pairs == stored.images == 16
        assert len({at.upload for at in seen}) == 1
        rows = [at.rows for at in seen]
        assert rows == sorted(rows)
        assert seen[-1].done
        assert (seen[-1].rows, seen[-1].total_rows) == (16, 16)

        pairs, left, went_on = many(17), list[UploadProgress](), list[UploadProgress]()

        def leave(at: UploadProgress) -> None:
            left.append(at)
            if at.rows > 3:
                raise ZeroDivisionError

        async with AsyncClient(servers[0].address) as twin:
            with pytest.raises(ZeroDivisionError):
                await twin.upload_dataset("second", pairs, progress=leave)
            upload = left[-1].upload
            with pytest.raises(FailedPrecondition, match="UPLOAD_CHANGED"):
                await twin.upload_dataset("second", pairs[::-1], resume=upload)
            again = await twin.upload_dataset(
                "second", pairs, resume=upload, progress=went_on.append
            )
        assert again.pairs == 17
        assert went_on[0].rows >= left[-1].rows
        assert not list((tmp_path / "data/datasets/uploads").glob("*/spool.db"))
        with pytest.raises(NotFound, match="UPLOAD_NOT_FOUND"):
            client.upload_dataset("third", pairs, resume="up-" + "0" * 32)
