"""Uploads as a caller makes them, without a wire."""

from __future__ import annotations

from pathlib import Path

from support.drawings import key_of

from hotclip_server.datasets.records import DatasetRecord, Sent, UploadTerms
from hotclip_server.datasets.rows import Row
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.datasets.upload import DatasetUpload

TERMS = UploadTerms(name="", description="")


def terms(name: str = "", *, max_bad_rows: int = 0, max_bad_share: float = 0) -> UploadTerms:
    """What a caller asks for."""
    return UploadTerms(
        name=name, description="shapes", max_bad_rows=max_bad_rows, max_bad_share=max_bad_share
    )


def sent(upload: DatasetUpload, rows: int, images: int) -> Sent:
    """What a caller says at the end that sent so much."""
    return Sent(pairs=rows, images=images, digest=upload.digest)


async def put(store: DatasetStore, name: str, pairs: list[tuple[bytes, str]]) -> DatasetRecord:
    """Uploads pairs, each image once, after its row: any order will do."""
    upload = await store.begin(terms(name))
    for image, text in pairs:
        upload.add_rows([Row(key_of(image), text)])
        upload.add_image(key_of(image), image)
    try:
        return await store.commit(upload, sent(upload, len(pairs), len(pairs)))
    finally:
        upload.discard()


def folders(root: Path) -> list[str]:
    """Datasets, uploads and temporary folders below the root of a store."""
    found = [entry.name for entry in root.iterdir() if entry.name != "uploads"]
    found += [
        f"uploads/{e.name}" for e in (root / "uploads").iterdir() if (e / "spool.db").exists()
    ]
    return sorted(found)
