"""CSV and JSON lines in every shape that people have them."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotclip import BadRow, DatasetFile
from hotclip._dataset_file import FileRows, rows_of
from hotclip._pairs import ImagePair, Tolerance, check
from hotclip.errors import InvalidArgument

PNG = b"\x89PNG\r\n\x1a\n"
IMAGES = ("a.png", "b.png", "c, d.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("files")
    for name in IMAGES:
        (found / name).write_bytes(PNG + name.encode())
    (found / "secret.txt").write_text("root:x:0:0")
    return found


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    file = folder / name
    file.write_bytes(text.encode(encoding))
    return file


def read(file: Path | DatasetFile) -> list[ImagePair]:
    rows = rows_of(file)
    check(rows, Tolerance())
    return [row for row in rows if isinstance(row, ImagePair)]


def told(file: Path | DatasetFile) -> list[tuple[str, str]]:
    return [(r.where, r.field) for r in rows_of(file) if isinstance(r, BadRow)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", 'text,image\nein Fuchs,a.png\n"zwei, drei","c, d.png"\n'),
        ("p.csv", '\ufeffImage,Caption\na.png,ein Fuchs\n"c, d.png","zwei, drei"\n'),
        ("p.csv", 'ein Fuchs,a.png\n\n"zwei, drei","c, d.png"\n'),
        ("p.csv", 'a.png,ein Fuchs\n"c, d.png","zwei, drei"\n'),
        ("p.csv", "image path;caption\na.png;ein Fuchs\nc, d.png;zwei, drei\n"),
        ("p.csv", "a.png|ein Fuchs\r\nc, d.png|zwei, drei"),
        ("p.csv", "id;a;FILE-NAME;title\n1;;a.png;ein Fuchs\n2;;c, d.png;zwei, drei\n"),
        ("p.csv", "image,text\n'a.png','ein Fuchs'\n'c, d.png','zwei, drei'\n"),
        ("p.tsv", "text\timage\nein Fuchs\ta.png\nzwei, drei\tc, d.png\n"),
        (
            "p.jsonl",
            '{"text": "ein Fuchs", "image": "a.png"}\n\n'
            '{"image": "c, d.png", "text": "zwei, drei"}',
        ),
        (
            "p.jsonl",
            '{"Caption": ["ein Fuchs"], "path": "a.png"}\n'
            '{"caption": "zwei, drei", "uri": "c, d.png"}',
        ),
    ],
)
def test_files_in_many_shapes(folder: Path, name: str, text: str) -> None:
    pairs = read(write(folder, name, text))
    assert [p.text for p in pairs] == ["ein Fuchs", "zwei, drei"]
    assert [p.image.load().image[8:] for p in pairs] == [b"a.png", b"c, d.png"]


@pytest.mark.parametrize("delimiter", [", ", "'", "\n", "\\"])
def test_a_delimiter_that_separates_nothing_is_refused(folder: Path, delimiter: str) -> None:
    file = DatasetFile(write(folder, "d.csv", "image,text\na.png,x\n"), delimiter=delimiter)
    with pytest.raises(InvalidArgument) as caught:
        read(file)
    assert [violation.field for violation in caught.value.fields] == ["delimiter"]


# Without "\r", which csv.writer does not quote.
TEXTS = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), min_size=1, max_size=12
).filter(lambda text: bool(text.strip()))
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "text": TEXTS,
            "image": st.sampled_from(IMAGES),
            "group": st.one_of(st.just(""), TEXTS),
            "label": st.one_of(st.just(""), TEXTS),
            "score": st.floats(0, 1),
            "negative_text": TEXTS,
        }
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(
    records=RECORDS,
    order=st.permutations(["text", "image", "group", "label", "score", "negative_text"]),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_what_is_written_is_read(
    folder: Path,
    records: list[dict[str, object]],
    order: Sequence[str],
    delimiter: str,
    quoting: int,
    end: str,
    encoding: str,
) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(
        out,
        order,
        delimiter=delimiter,
        quoting=quoting,
        lineterminator=end,  # type: ignore[arg-type]
    )
    writer.writeheader()
    writer.writerows(records)
    file = write(folder, "written.csv", out.getvalue(), encoding)
    pairs = read(DatasetFile(file, encoding=encoding))
    assert [
        {
            "text": p.text,
            "image": Path(p.image.origin).name,
            "group": p.group,
            "label": p.label,
            "score": p.score,
            "negative_text": p.negative_texts[0],
        }
        for p in pairs
    ] == records
    lines = "".join(json.dumps(record, ensure_ascii=False) + end for record in records)
    again = read(DatasetFile(write(folder, "written.jsonl", lines, encoding), encoding=encoding))
    assert [(p.text, p.label, p.score) for p in again] == [
        (p.text, p.label, p.score) for p in pairs
    ]


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), kind=st.sampled_from(["csv", "tsv", "jsonl"]))
def test_any_bytes_are_read_or_refused(folder: Path, data: bytes, kind: str) -> None:
    file = folder / f"any.{kind}"
    file.write_bytes(data)
    try:
        rows = list(FileRows(DatasetFile(file)))
    except InvalidArgument:
        return
    assert all(isinstance(row, BadRow | ImagePair) for row in rows)


@pytest.mark.parametrize(
    ("rows", "score", "label"),
    [
        ("a.png,x,0.5\nb.png,y,1\n", [0.5, 1.0], ["", ""]),
        ("a.png,x,1\nb.png,y,0\n", [1.0, 1.0], ["1", "0"]),
        ("x,a.png,cat\ny,b.png,\n", [1.0, 1.0], ["cat", ""]),
    ],
)
def test_a_third_cell_is_a_score_or_a_label(
    folder: Path, rows: str, score: list[float], label: list[str]
) -> None:
    pairs = read(write(folder, "p.csv", rows))
    assert [(p.score, p.label) for p in pairs] == list(zip(score, label, strict=True))


def test_labelled_images_groups_and_negatives(folder: Path) -> None:
    rows = "image,label\na.png,cat\nb.png,dog\n"
    assert [(p.text, p.label) for p in read(write(folder, "p.csv", rows))] == [
        ("", "cat"),
        ("", "dog"),
    ]
    named = DatasetFile(write(folder, "p.csv", "a.png;cat\n"), columns=("image", "label"))
    assert [p.label for p in read(named)] == ["cat"]
    header = "text,image,group,negative_text,negative_text,negative_image"
    rows = f"{header}\nx,a.png,g,u,v,b.png\ny,b.png,,,,\n"
    first, second = read(write(folder, "p.csv", rows))
    assert (first.group, first.negative_texts) == ("g", ("u", "v"))
    assert [i.load().image[8:] for i in first.negative_images] == [b"b.png"]
    assert (second.group, second.negative_texts, second.negative_images) == ("", (), ())
    rows = (
        '{"text": ["x", "y"], "image": "a.png", "group": 7, "negative_texts": ["u"]}\n'
        '{"image": "b.png", "label": 3, "score": 0.5, "negative_images": "a.png", "text": null}'
    )
    pairs = read(write(folder, "p.jsonl", rows))
    assert [(p.text, p.group, p.label, p.score) for p in pairs] == [
        *(("x", "7", "", 1.0), ("y", "7", "", 1.0), ("", "", "3", 0.5))
    ]


def test_a_text_may_be_longer_than_a_name_of_a_file(folder: Path) -> None:
    [pair] = read(write(folder, "p.csv", f"{'x' * 300},a.png\n"))
    assert pair.text == "x" * 300
    assert told(write(folder, "p.csv", f"text,image\nx,{'x' * 300}\n")) == [("line 2", "image")]


def test_a_sentence_about_a_file_is_a_text(folder: Path) -> None:
    [pair] = read(write(folder, "p.csv", "text,image\na.png,a.png\n"))
    assert pair.text == "a.png"


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        (
            "p.csv",
            "text,image\nx,none.png\n,a.png\ny,b.png\nz\n",
            [("line 2", "image"), ("line 3", "text"), ("line 5", "image")],
        ),
        ("p.csv", "image,text\na.png,one, two\nb.png,three\n", [("line 2", "")]),
        ("p.csv", "a.png,one\nb.png,two, three\n", [("line 2", "")]),
        ("p.csv", 'text,image\n"two\nlines",a.png\n\nx,none.png\n', [("line 5", "image")]),
        (
            "p.csv",
            "text,image,score\nx,a.png,2\ny,a.png,much\n",
            [("line 2", "score"), ("line 3", "score")],
        ),
        ("p.csv", "text,image\nx,http://127.0.0.1/a.png\n", [("line 2", "image")]),
        ("p.csv", f"text,image\n{'x' * 140_000},a.png\ny,b.png\n", [("line 2", "")]),
        (
            "p.jsonl",
            '{"text": "x"}\nnonsense\n[]\n{"text": 1, "image": "a.png"}\n' + "[" * 9999,
            [
                ("line 1", "image"),
                *((f"line {n}", "") for n in (2, 3)),
                ("line 4", "text"),
                ("line 5", ""),
            ],
        ),
        ("p.jsonl", '{"text": "\\ud800", "image": "a.png"}', [("line 1", "text")]),
        (
            "p.jsonl",
            f'{{"text": "{"x" * (3 << 20)}"}}\n{{"text": "y"}}',
            [("line 1", ""), ("line 2", "image")],
        ),
    ],
)
def test_bad_rows_are_named_by_line(
    folder: Path, name: str, text: str, rows: list[tuple[str, str]]
) -> None:
    assert told(write(folder, name, text)) == rows


def test_rows_within_an_open_quote_are_counted(folder: Path) -> None:
    text = 'text,image\nx,a.png\n"open,b.png\n'
    short = rows_of(write(folder, "p.csv", text + "y,b.png\n" * 3))
    assert told(write(folder, "p.csv", text + "y,b.png\n" * 3)) == [
        ("line 3", "image"),
        *((f"line {n}", "") for n in (4, 5, 6)),
    ]
    with pytest.raises(InvalidArgument, match="line 6: within the quotes that begin in line 3"):
        check(short, Tolerance(max_bad_rows=3))
    # A cell ends where it is too long, and so does what it takes away.
    rows = list(rows_of(write(folder, "p.csv", text + "y,b.png\n" * 20_000)))
    assert len(rows) == 20_002
    good = [row for row in rows if isinstance(row, ImagePair)]
    assert {pair.text for pair in good} == {"x", "y"}
    # A text of several lines is one, also where a later cell is missing.
    label = 'text,image,label\n"two\nlines",a.png\n'
    assert [p.text for p in read(write(folder, "p.csv", label))] == ["two\nlines"]
    with pytest.raises(InvalidArgument, match=r"line 2.image: no such image: none.png"):
        check(rows_of(write(folder, "p.csv", "text,image\nx,none.png\n")), Tolerance(9))


@pytest.mark.parametrize(
    ("name", "text"),
    [("p.csv", "x,y\n"), ("p.csv", "a.png,b.png\n"), ("p.csv", "a.png\n"), ("p.csv", "a,b,c,d\n")],
)
def test_columns_that_are_not_understood(folder: Path, name: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(write(folder, name, text))
    assert [v.field for v in caught.value.fields] == ["line 1"]
    assert "caption" in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n", "text,image\n"])
def test_a_file_without_rows(folder: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="no row at all"):
        read(write(folder, "p.csv", text))


def test_bytes_of_another_encoding_spoil_their_row_alone(folder: Path) -> None:
    file = write(folder, "p.csv", "text,image\nTür,a.png\nHaus,b.png\n", "cp1252")
    bad, good = rows_of(file)
    assert isinstance(bad, BadRow)
    assert bad.where == "line 2"
    assert "byte 0xFC is not utf-8" in bad.reason
    assert isinstance(good, ImagePair)
    assert [p.text for p in read(DatasetFile(file, encoding="cp1252"))] == ["Tür", "Haus"]
    with pytest.raises(InvalidArgument, match="encoding"):
        rows_of(DatasetFile(file, encoding="latin-99"))


def test_only_pictures_leave_the_machine(folder: Path) -> None:
    [pair] = read(write(folder, "p.csv", "text,image\nx,secret.txt\n"))
    with pytest.raises(InvalidArgument, match="neither JPEG nor PNG nor WebP"):
        pair.image.load()


def test_urls_are_left_alone_unless_it_is_said(folder: Path) -> None:
    file = write(folder, "p.csv", "https://127.0.0.1:1/a.png,x\n")
    [bad] = rows_of(file)
    assert isinstance(bad, BadRow)
    assert "fetch_urls" in bad.reason
    [pair] = read(DatasetFile(file, fetch_urls=True))
    assert pair.image.source == "https://127.0.0.1:1/a.png"


def test_unused_columns_and_unknown_suffixes_are_told(folder: Path) -> None:
    rows = FileRows(DatasetFile(write(folder, "p.csv", "id,image,text,price\n1,a.png,x,2\n")))
    assert len(list(rows)) == 1
    assert rows.notes == ["p.csv: columns that are not used: id, price"]
    with pytest.raises(InvalidArgument, match="suffix"):
        rows_of(folder / "secret.txt")
    with pytest.raises(InvalidArgument, match="without a tar"):
        rows_of(folder)
    with pytest.raises(InvalidArgument, match="No such file"):
        read(folder / "none.csv")
    with pytest.raises(InvalidArgument, match="columns"):
        read(DatasetFile(folder / "p.csv", columns=("image", "price")))


def test_a_long_file_is_not_held(folder: Path) -> None:
    row = f"{'word ' * 200},a.png\r\n"
    file = write(folder, "long.csv", "text,image\r\n" + row * 5_000)
    tracemalloc.start()
    assert check(rows_of(file), Tolerance()) == 5_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20 < file.stat().st_size
