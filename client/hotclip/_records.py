"""Rows of files: names of columns, and what a record must hold to be a pair."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hotclip._inputs import Image
from hotclip._pairs import BadRow, ImagePair, score_of, text_of
from hotclip.errors import InvalidArgument
from hotclip_proto.v1 import types_pb2

# The first name is the field's own; case, spaces and "-" for "_" don't count.
NAMES: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "caption", "title", "query", "prompt"),
    "image": (
        *("image", "image_path", "path", "file", "file_name", "filename", "filepath"),
        *("image_url", "url", "uri"),
    ),
    "group": ("group", "group_id"),
    "label": ("label", "class", "category"),
    "score": ("score", "similarity"),
    "negative_texts": ("negative_texts", "negative_text"),
    "negative_images": ("negative_images", "negative_image"),
}
_FIELDS = {name: field for field, names in NAMES.items() for name in names}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


def field_of(name: str) -> str | None:
    """The field that a column or key means; None: it means nothing here."""
    return _FIELDS.get(name.strip().lower().replace(" ", "_").replace("-", "_"))


@dataclass(frozen=True)
class Places:
    """Where the images lie that records name.

    Args:
        folder: What relative paths start from.
        fetch_urls: Whether http and https URLs are fetched.
        encoding: Of the file, for what is said of bytes that are not in it.
    """

    folder: Path
    fetch_urls: bool
    encoding: str

    def has(self, name: str) -> bool:
        """Whether there is such an image, for guessing which column has them."""
        if name.startswith(("http://", "https://")):
            return True
        try:
            self.image(name, "image")
        except InvalidArgument:
            return False
        return True

    def image(self, name: object, field: str) -> Image:
        """What a path or URL names, not read yet.

        Raises:
            InvalidArgument: There is no such file, or it is a URL and those are not fetched.
        """
        if not isinstance(name, str) or not name.strip():
            raise InvalidArgument.field(field, "empty" if not name else "no path")
        told = urlsplit(name) if "://" in name else None
        if told and told.scheme in {"http", "https"}:
            if not self.fetch_urls:
                problem = f"{name} is a URL: DatasetFile(…, fetch_urls=True) fetches it"
                raise InvalidArgument.field(field, problem)
            return Image.from_url(name)
        path = self.folder / (unquote(told.path) if told and told.scheme == "file" else name)
        try:
            found = path.is_file()
        except (OSError, ValueError):  # e.g. a text that is too long to be a name
            found = False
        if not found:
            raise InvalidArgument.field(field, f"no such image: {printable(name)}")
        return _picture(path)

    def text(self, value: object, field: str, *, empty: bool = False) -> str:
        """A text of the file; raises InvalidArgument."""
        if isinstance(value, str):
            wrong = next((c for c in value if "\udc80" <= c <= "\udcff"), None)
            if wrong is not None:
                problem = f"byte 0x{ord(wrong) - 0xDC00:02X} is not {self.encoding}"
                hint = "if the file has another encoding: DatasetFile(…, encoding=…)"
                raise InvalidArgument.field(field, f"{problem}; {hint}")
        return text_of(value, field, empty=empty)


def pairs_of_record(
    record: Mapping[str, object], where: str, places: Places, image: Image | None = None
) -> Iterator[ImagePair | BadRow]:
    """The pairs of a record: one for each of its texts, or one without a text if it has a label.

    Args:
        record: Values by field; a text may be a list.
        image: Where it is not `record["image"]` that names it.
    """
    try:
        pair = _pair(record, where, places, image)
    except InvalidArgument as error:
        yield BadRow(where, error.fields[0].field, error.fields[0].reason)
        return
    texts = record.get("text")
    if not isinstance(texts, list):
        texts = ["" if texts is None else texts]
    for text in texts or [""]:
        try:
            yield replace(pair, text=places.text(text, "text", empty=bool(pair.label)))
        except InvalidArgument as error:
            yield BadRow(where, error.fields[0].field, error.fields[0].reason)


def _pair(
    record: Mapping[str, object], where: str, places: Places, image: Image | None
) -> ImagePair:
    score = record.get("score")
    return ImagePair(
        text="",
        image=image or places.image(record.get("image"), "image"),
        where=where,
        group=places.text(_name(record.get("group")), "group", empty=True),
        label=places.text(_name(record.get("label")), "label", empty=True),
        score=1.0 if score is None or score == "" else score_of(score),
        negative_texts=tuple(
            places.text(text, "negative_texts") for text in _list(record, "negative_texts")
        ),
        negative_images=tuple(
            places.image(name, "negative_images") for name in _list(record, "negative_images")
        ),
    )


def _name(value: object) -> object:
    """Groups and labels may be numbers."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else value


def _list(record: Mapping[str, object], field: str) -> list[object]:
    value = record.get(field)
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def printable(name: str) -> str:
    """A name from a file, for a message: short, in one line, valid Unicode."""
    kept = "".join(c if c.isprintable() else "\ufffd" for c in name)
    return kept if len(kept) <= 120 else f"{kept[:119]}…"


def _picture(path: Path) -> Image:
    """A file that must be a picture: a list of paths shall not send any other."""
    plain = Image.from_path(path)

    def load() -> types_pb2.EncodeItem:
        item = plain.load()
        if not item.image.startswith(_SIGNATURES):
            problem = f"{path}: neither JPEG nor PNG nor WebP"
            raise InvalidArgument.field("image", problem, reason="IMAGE_UNREADABLE")
        return item

    return Image(plain.origin, load, source=plain.source)
