"""Which engine a server answers with, by what GetServerInfo says."""

from dataclasses import asdict, dataclass
from typing import Any

from hotclip import Client

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """The live version and what runs it."""

    version: str
    image_size: int
    """Height and width of the model's input in pixels."""
    engine: str
    precision: str

    @property
    def exact(self) -> bool:
        """Whether answers must be as near to open_clip's as fp32 is."""
        return self.precision == "fp32"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exact": self.exact}


def wait_for_engines(client: Client) -> Serving:
    """Waits until the server has chosen its engines, and tells them."""
    info = client.server_info()
    live = next(version for version in info.versions if version.live)
    return Serving(
        version=live.version,
        image_size=live.image_size,
        engine=info.engine,
        precision=PRECISIONS.get(info.precision, info.precision),
    )
