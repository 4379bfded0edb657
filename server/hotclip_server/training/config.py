"""What a training run is told: frozen, validated when made. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hotclip_server.training.errors import InvalidTrainConfig
from hotclip_server.training.metric_names import Option

Scheduler = Literal["cosine", "linear", "constant", "cosine_with_restarts", "polynomial"]
OptimizerName = Literal["adamw", "adam", "sgd"]
Precision = Literal["auto", "fp32", "bf16"]
Loss = Literal["auto", "info_nce", "siglip", "metric"]
Positives = Literal["share", "mask", "off"]
Method = Literal["auto", "full", "lora", "projection", "lit"]
Matrix = Literal["q", "k", "v", "out", "mlp"]

AUTO_LORA_BELOW = 1000
"""Training pairs below which the method "auto" is LoRA."""
FULL_RATE, LORA_RATE = 1e-5, 2e-4
"""Learning rates where none is given, of models with LARGE weights or more."""
LARGE = 150_000_000
"""Weights of a ViT-B-32 and its text tower; smaller models have higher rates in proportion."""
MOST_RAISED = 100.0
"""What the rate of a small model is multiplied by at most."""
LAYER_DECAY = 1.0
"""Of the method full where none is given; 1 is off."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of a training image; off by default. Images never flip: "left" stays left."""

    crop: tuple[float, float] = (1.0, 1.0)
    """Range of the share of the side that is kept; above 1 the image shrinks, its border grows."""
    shift: float = 0.0
    """Largest move in each direction, as a share of the side."""
    rotate: float = 0.0
    """Largest rotation in degrees."""
    brightness: float = 0.0
    """Largest relative change of brightness and of contrast."""
    grey: float = 0.0
    """Probability of losing colour, wholly or in part."""
    hue: float = 0.0
    """Probability of a rotation of the hue by any angle."""
    outline: float = 0.0
    """Probability of dark outlines along edges, thin or thick."""
    line_art: float = 0.0
    """Probability of keeping only the edges, as a drawing on white."""
    blur: float = 0.0
    """Probability of a slight blur."""

    @property
    def changes(self) -> bool:
        """Whether any image may come out other than it went in."""
        return self != AugmentConfig()


CROPS = AugmentConfig(crop=(0.9, 1.0))
"""What a request asks for that says "augment" and no more."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank changes of attention: W + alpha / rank * up @ down (Hu et al. 2021)."""

    rank: int = 2
    """Columns of `up` and rows of `down`; CLIP-LoRA's (Zanella and Ben Ayed 2024)."""
    alpha: float | None = None
    """None: the rank, so that the factor is 1."""
    dora: bool = False
    """Also learn the length of each row (Liu et al. 2024)."""
    targets: tuple[Matrix, ...] = ("q", "k", "v")
    """Matrices of each block that change."""

    @property
    def scale(self) -> float:
        """Of the product of the factors."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class MetricLossConfig:
    """A loss of pytorch-metric-learning and its miner, by the names of their classes."""

    name: str
    """A key of METRIC_LOSSES."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Keyword arguments of the loss."""
    miner: str = ""
    """A key of METRIC_MINERS; empty: none."""
    miner_options: Mapping[str, Option] = field(default_factory=dict)
    """Keyword arguments of the miner."""
    items_per_class: int = 4
    """Images of a class that are drawn together, as far as there are so many."""


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Hard negatives that the model finds itself; see `mining`."""

    count: int = 1
    """How many images and texts come into the batch with each pair, each."""
    pool: int = 8
    """The hardest of each pair that are drawn from."""
    ceiling: float = 0.95
    """What is nearer than this share of the pair's own similarity is taken for right."""
    every: int = 1
    """Epochs between two searches."""
    collection: str = ""
    """Whose images are searched besides those of the training data; empty: none."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Raises InvalidTrainConfig naming every bad field."""

    epochs: int = 5
    """Passes over the images; ignored where `max_steps` is given."""
    max_steps: int | None = None
    """Optimizer steps in total, instead of `epochs`."""
    batch_size: int = 64
    """Most images of one step."""
    chunk_size: int = 0
    """Images or texts that a tower sees at a time; 0: chosen by the run."""

    method: Method = "full"
    """Which weights are trained; "auto": LoRA below AUTO_LORA_BELOW pairs, else full."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """With the method "lora"."""
    lock_image: bool = False
    """Leave the vision tower exactly as it is: stored image vectors stay valid."""
    lock_text: bool = False
    """Leave the text tower exactly as it is."""
    freeze_layers: int = 0
    """First blocks of each tower that stay as they are, with what lies before them."""

    loss: Loss = "auto"
    """"auto": SigLIP's for models with a logit bias, else InfoNCE."""
    positives: Positives = "off"
    """What items are that share text, image, group or label without being one pair."""
    negatives: int = 1
    """How many of a row's negative texts and images come into its batch, each."""
    mining: MiningConfig | None = None
    """Negatives that are looked for; None: none."""
    metric_loss: MetricLossConfig | None = None
    """With the loss "metric"."""
    preserve: float = 0.0
    """Weight of the squared distance of features to those of the base; 0 is off."""

    optimizer: OptimizerName = "adamw"
    """What turns gradients into steps."""
    learning_rate: float | None = None
    """Peak learning rate, after the warm-up; None: by the method and the size of the model."""
    warmup: float = 0.05
    """Share of all steps in which the learning rate rises from 0."""
    scheduler: Scheduler = "cosine"
    """Course of the learning rate after the warm-up."""
    scheduler_cycles: int = 2
    """Falls of "cosine_with_restarts"."""
    scheduler_power: float = 2.0
    """Exponent of "polynomial"."""
    weight_decay: float = 0.05
    """Decay of matrices; none on one-dimensional parameters and the logit scale."""
    beta1: float = 0.9
    """AdamW and Adam, first moment."""
    beta2: float = 0.98
    """AdamW and Adam, second moment."""
    momentum: float = 0.9
    """SGD."""
    layer_decay: float | None = None
    """Rate of a block as a share of that of the block after it; None: by the method."""
    clip_norm: float = 1.0
    """Largest norm of the gradient over all parameters."""
    ema: float = 0.0
    """Horizon of the moving average of the weights as a share of all steps; 0 is off."""
    train_batch_norm: bool = False
    """Learn BatchNorm statistics (training from scratch); else they stay as they are."""
    precision: Precision = "auto"
    """Arithmetic of the towers; loss and weights are always fp32. "auto": bf16 on CUDA."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of the training images."""
    seed: int = 0
    """Of the order, the captions drawn, the augmentation and dropout."""

    def __post_init__(self) -> None:
        from hotclip_server.training.checks import violations

        found = tuple(violations(self))
        if found:
            raise InvalidTrainConfig(found)

    @property
    def rate(self) -> float:
        """Peak learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return default_rate(self.method, LARGE)

    @property
    def decay(self) -> float:
        """Rate of a block as a share of that of the block after it."""
        if self.layer_decay is not None:
            return self.layer_decay
        return LAYER_DECAY if self.method == "full" else 1.0

    @property
    def locks_image(self) -> bool:
        """Whether the vision tower stays exactly as it is."""
        return self.lock_image or self.method == "lit"

    def decided(self, pairs: int) -> TrainConfig:
        """With the method that "auto" means for a dataset of so many pairs."""
        if self.method != "auto":
            return self
        if pairs < AUTO_LORA_BELOW:
            # It has one rate; a request that gives others is refused.
            return replace(self, method="lora", layer_decay=None)
        return replace(self, method="full")

    def resolved(self, *, pairs: int, weights: int, logit_bias: bool, device: str) -> TrainConfig:
        """What "auto" means for so many training pairs, a model and a torch device; the rest as is.
        `weights` is how many numbers the model learnt.

        A run that goes on must be given the same, so that it is the same run.
        """
        method = self.decided(pairs).method
        decay = self.layer_decay if method in ("full", "lit") else None
        # Losses of classes know of no single pairs.
        negatives = 0 if self.loss == "metric" else self.negatives
        precision: Precision = "bf16" if device.startswith("cuda") else "fp32"
        loss: Loss = "siglip" if logit_bias else "info_nce"
        return replace(
            self,
            method=method,
            layer_decay=decay,
            negatives=negatives,
            loss=loss if self.loss == "auto" else self.loss,
            precision=precision if self.precision == "auto" else self.precision,
            learning_rate=default_rate(method, weights)
            if self.learning_rate is None
            else self.learning_rate,
        )

    @property
    def summary(self) -> str:
        """What "auto" came to, for people."""
        return (
            f"method {self.method}, loss {self.loss}, learning rate {self.rate:g}, {self.precision}"
        )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TrainConfig:
        """What `dataclasses.asdict` and JSON made."""
        fields = dict(stored)
        augment, lora = dict(fields.pop("augment")), dict(fields.pop("lora"))
        augment["crop"], lora["targets"] = tuple(augment["crop"]), tuple(lora["targets"])
        metric = fields.pop("metric_loss")
        mining = fields.pop("mining")
        return cls(
            **fields,
            augment=AugmentConfig(**augment),
            lora=LoraConfig(**lora),
            metric_loss=None if metric is None else MetricLossConfig(**metric),
            mining=None if mining is None else MiningConfig(**mining),
        )


def default_rate(method: Method, weights: int) -> float:
    """Peak learning rate for a model with so many weights."""
    raised = min(MOST_RAISED, max(1.0, LARGE / weights))
    return raised * (LORA_RATE if method == "lora" else FULL_RATE)
