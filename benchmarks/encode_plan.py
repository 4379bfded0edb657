"""What the suite encode measures of a model, so that a run is as long as it is worth."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from benchmarks.settings import Settings, label

CPU_BATCHES = (1, 2, 4, 8, 16, 32, 64)
"""All that the server may choose."""
CUDA_BATCHES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Shape:
    """How requests come."""

    clients: int
    """That ask one after another; 0: one stream, as full as the server allows."""
    items: int
    """Of one request."""
    public: bool = False
    """Whether hotclip.Client sends it; else requests are made ready beforehand."""

    def __str__(self) -> str:
        if self.public:
            return f"client_{self.clients}x{self.items}"
        return f"{self.clients}x{self.items}" if self.clients else f"stream_x{self.items}"


STREAM = Shape(0, 16)
CLOSED = Shape(4, 16)
"""The shape of the comparisons."""
ONE, EIGHT, MANY = Shape(1, 1), Shape(8, 1), Shape(32, 1)
LONG = Shape(2, 64)
PUBLIC = Shape(4, 16, public=True)
ALL = (ONE, EIGHT, MANY, LONG, STREAM, PUBLIC)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A workload whose baselines run beside it, segment by segment."""

    content: str
    shape: Shape = CLOSED
    raw: bool = True
    """Whether served over raw is a figure."""
    open_clip: bool = False
    """Whether the engine in process over plain open_clip is a figure."""
    largest_batch: int | None = None
    """Of the plan's sizes raw loops try none above it; None: they try all."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one model."""

    counts: dict[str, int]
    """Different items of each kind."""
    references: int
    """Items of each kind that plain open_clip encodes for comparison."""
    rounds: int
    """Pairs of segments of a comparison."""
    seconds: float
    """Of a segment of a comparison; others take half."""
    compared: tuple[Compared, ...]
    rates: dict[str, tuple[Shape, ...]] = field(default_factory=dict)
    """More shapes, by content."""
    latency: tuple[str, ...] = ()
    """Contents that come at random, one a call."""
    most: Shape = MANY
    """One a call from so many clients: what saturates the server."""
    batches: tuple[int, ...] = CPU_BATCHES
    """Sizes that raw loops try."""

    @property
    def contents(self) -> tuple[str, ...]:
        return tuple(self.counts)

    def batches_of(self, compared: Compared) -> tuple[int, ...]:
        """Sizes that raw loops try on a workload."""
        largest = compared.largest_batch
        return tuple(size for size in self.batches if largest is None or size <= largest)

    def only(self, contents: Collection[str]) -> "Plan":
        """What concerns some kinds of items."""
        return replace(
            self,
            counts={name: count for name, count in self.counts.items() if name in contents},
            compared=tuple(one for one in self.compared if one.content in contents),
            rates={name: shapes for name, shapes in self.rates.items() if name in contents},
            latency=tuple(name for name in self.latency if name in contents),
        )


IMAGES_AND_TEXTS = (
    Compared(content="tensor"),
    Compared(content="jpeg_small", open_clip=True),
    Compared(content="jpeg_large", open_clip=True),
    Compared(content="text", open_clip=True),
)


def plan_of(source: str, settings: Settings) -> Plan:
    """The plan of a model by its source."""
    plan = _quick(settings) if settings.quick else _plan(source, settings)
    return plan.only(settings.contents) if settings.contents else plan


def _plan(source: str, settings: Settings) -> Plan:
    batches = CPU_BATCHES if settings.device == "cpu" else CUDA_BATCHES
    slow = settings.device == "cpu"
    many = 256 if slow else 1024
    everything = {"jpeg_small": ALL, "text": ALL, "tensor": (ONE, MANY, LONG)}
    match label(source):
        case "ViT-L-14" if slow:  # a third of a second an image: little, and small requests
            few = Shape(4, 4)
            return Plan(
                counts={"tensor": 32, "text": 128},
                references=32,
                rounds=settings.rounds,
                seconds=1.5 * settings.seconds,
                compared=(
                    Compared(content="tensor", shape=few, largest_batch=8),
                    Compared(content="text"),
                ),
                rates={"tensor": (ONE,), "text": (MANY,)},
                batches=batches,
            )
        case "xlm-roberta-base-ViT-B-32":  # its images are those of ViT-B-32
            return Plan(
                counts={"text": many, "text_long": many},
                references=64,
                rounds=settings.rounds,
                seconds=settings.seconds,
                compared=(
                    Compared(content="text", open_clip=True),
                    Compared(content="text_long"),
                ),
                rates={"text": (ONE, MANY), "text_long": (EIGHT,)},
                latency=("text",),
                batches=batches,
            )
        case "ViT-B-32":
            return Plan(
                counts=dict.fromkeys(("tensor", "jpeg_small", "jpeg_large"), many)
                | dict.fromkeys(("text", "text_long"), many),
                references=64,
                rounds=settings.rounds,
                seconds=settings.seconds,
                compared=IMAGES_AND_TEXTS,
                rates={**everything, "jpeg_large": (EIGHT,), "text_long": (EIGHT, CLOSED)},
                latency=("jpeg_small", "text"),
                batches=batches,
            )
        case _:
            return Plan(
                counts=dict.fromkeys(("tensor", "jpeg_small", "jpeg_large", "text"), many),
                references=64,
                rounds=settings.rounds,
                seconds=0.5 * settings.seconds,
                compared=IMAGES_AND_TEXTS,
                rates=everything,
                latency=("jpeg_small", "text"),
                batches=batches,
            )


def _quick(settings: Settings) -> Plan:
    shape = Shape(2, 4)
    return Plan(
        counts={"tensor": 16, "jpeg_small": 16, "jpeg_large": 8, "text": 16},
        references=16,
        rounds=1,
        seconds=min(settings.seconds, 0.3),
        compared=(
            Compared(content="tensor", shape=shape),
            Compared(content="jpeg_small", shape=shape, open_clip=True),
            Compared(content="jpeg_large", shape=shape, open_clip=True),
            Compared(content="text", shape=shape, open_clip=True),
        ),
        rates={"jpeg_small": (ONE, Shape(0, 4), Shape(2, 4, public=True))},
        latency=("text",),
        most=Shape(4, 1),
        batches=(4, 8),
    )
