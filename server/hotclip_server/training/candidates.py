"""Images of a collection that are mined for negatives.

They are copied when a run first begins, so that it finds the same ones however often it goes on,
and so that they can be read in another process.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from hotclip_server.errors import DataLoss
from hotclip_server.pace import Pause
from hotclip_server.storage.atomic import new_folder, publish_folder, raise_if_disk_full

CANDIDATES = "candidates"
"""Folder within that of a job."""
MOST_CANDIDATES = 4096
"""Images that are copied; of a larger collection a sample."""
_INDEX, _IMAGES = "index.json", "images"


class Candidates:
    """Implements `ImageSet`.

    Args:
        folder: One that `copy_candidates` made.
        without: Keys of images that are left out.
    """

    def __init__(self, folder: Path, without: Collection[str] = ()) -> None:
        self._images = folder / _IMAGES
        self._places: dict[str, tuple[int, int]] = {
            key: (start, length)
            for key, start, length in json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            if key not in without
        }

    @property
    def keys(self) -> Sequence[str]:
        """sha256 of each image, hex: as datasets name theirs."""
        return list(self._places)

    def image_bytes(self, image_key: str) -> bytes:
        """Any thread. Raises KeyError for an unknown key, DataLoss for a damaged file."""
        start, length = self._places[image_key]
        with self._images.open("rb") as file:
            file.seek(start)
            data = file.read(length)
        if hashlib.sha256(data).hexdigest() != image_key:
            raise DataLoss(f"candidate {image_key} is damaged", reason="CHECKPOINT_DAMAGED")
        return data


def copy_candidates(images: Iterable[bytes], folder: Path, pause: Pause) -> None:
    """Writes encoded images, each once; the folder is there whole or not at all.

    Args:
        images: Read one by one.
        pause: Called after each; may wait, or raise to end it.

    Raises:
        ResourceExhausted: the disk is full; reason DISK_FULL.
    """
    temporary = new_folder(folder.parent)
    places: dict[str, tuple[int, int]] = {}
    try:
        with (temporary / _IMAGES).open("wb") as file:
            for data in images:
                key = hashlib.sha256(data).hexdigest()
                if key not in places:
                    places[key] = (file.tell(), len(data))
                    file.write(data)
                pause()
        index = [[key, start, length] for key, (start, length) in places.items()]
        (temporary / _INDEX).write_text(json.dumps(index), encoding="utf-8")
        publish_folder(temporary, folder)
    except OSError as error:
        raise_if_disk_full(error)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already if it was published
