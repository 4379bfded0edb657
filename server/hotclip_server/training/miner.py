"""Looks for hard negatives at the begin of an epoch, and hands them to the training set."""

from __future__ import annotations

from collections.abc import Generator, Mapping

from torch import Tensor

from hotclip_server.training.config import MiningConfig
from hotclip_server.training.dataset import TrainingSet
from hotclip_server.training.every_item import EveryItem
from hotclip_server.training.locked import LockedFeatures
from hotclip_server.training.mining import Mined, mine
from hotclip_server.training.towers import Towers


class Miner:
    """Of one run."""

    def __init__(
        self,
        config: MiningConfig,
        towers: Towers,
        data: TrainingSet,
        items: EveryItem,
        locked: LockedFeatures,
    ) -> None:
        self._config = config
        self._towers = towers
        self._data = data
        self._items = items
        self._locked = locked
        self._mined: Mined | None = None
        self.epoch = -1
        """Whose weights found what is in use; -1: none."""

    def due(self, epoch: int) -> int | None:
        """The epoch at whose begin the negatives of `epoch` are looked for; None: they are here."""
        wanted = epoch - epoch % self._config.every
        return None if self.epoch == wanted else wanted

    def mine(self, epoch: int) -> Generator[object, None, Mined]:
        """By the weights and modes as they are; pauses now and then."""
        images, texts = self._locked.images, self._locked.texts
        if images is None:
            images = yield from self._items.images()
        if texts is None:
            texts = yield from self._items.texts()
        plain = [self._towers.plain(part).to(self._towers.device) for part in (images, texts)]
        mined = yield from mine(plain[0], plain[1], self._data.relations, self._config)
        self._use(mined, epoch)
        return mined

    def state(self) -> Mapping[str, Tensor]:
        """What is in use; empty: nothing."""
        mined = self._mined
        return {} if mined is None else {"images": mined.images, "texts": mined.texts}

    def restore(self, tensors: Mapping[str, Tensor], epoch: int) -> None:
        """Goes on with a `state`."""
        self._use(Mined(**tensors) if tensors else None, epoch)

    def _use(self, mined: Mined | None, epoch: int) -> None:
        self._mined, self.epoch = mined, epoch
        self._data.use(mined, self._config.count)
