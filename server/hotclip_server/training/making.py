"""What the server needs of training before a job runs. Imports torch when it is asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotclip_server.datasets.store import DatasetStore
    from hotclip_server.models.store import VersionStore
    from hotclip_server.training.ground import Ground
    from hotclip_server.training.held_out import HeldOut


def make_held_out(device: str, store: VersionStore, datasets: DatasetStore) -> HeldOut:
    """What measures versions on datasets."""
    from hotclip_server.training import held_out

    return held_out.HeldOut(store, datasets, device=device)


def make_ground(device: str, store: VersionStore) -> Ground:
    """What knows where runs may train."""
    from hotclip_server.training import ground

    return ground.Ground(device, store.folder)
