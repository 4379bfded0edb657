"""What an engine is built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from open_clip.transform import PreprocessCfg
from torch import nn

from hotclip_server.encoding.protocol import Tower
from hotclip_server.encoding.text_tower import TextTower


@dataclass(frozen=True, kw_only=True)
class TowerSource:
    """One tower of one version. Whoever builds an engine from it changes nothing in it."""

    model: nn.Module
    """The whole open_clip model, fp32, in evaluation mode, on `device`."""
    tower: Tower
    text: TextTower
    """How texts are trimmed and padded; of either tower."""
    preprocess: PreprocessCfg
    """Mean and standard deviation that pixels / 255 are normalised with."""
    device: torch.device
    context_length: int
    folder: Path | None = None
    """Where the version lies, for engines that keep what they made of it."""
