"""What is measured of which model."""

import pytest

from benchmarks.encode_plan import plan_of
from benchmarks.settings import Settings
from hotclip_server.models.engines import LARGEST_BATCH


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "source", ["ViT-B-32::", "builtin:mini", "xlm-roberta-base-ViT-B-32::", "ViT-L-14::"]
)
def test_raw_loops_try_what_the_server_may_choose(source: str, device: str) -> None:
    plan = plan_of(source, Settings(device=device))
    for compared in plan.compared:
        sizes = plan.batches_of(compared)
        assert max(sizes) <= plan.counts[compared.content]
        if device == "cpu" and (source, compared.content) == ("ViT-L-14::", "tensor"):
            assert sizes == (1, 2, 4, 8)  # a third of a second an image
        else:
            assert max(sizes) == LARGEST_BATCH[device]


def test_a_processor_may_be_best_with_one_item() -> None:
    plan = plan_of("ViT-B-32::", Settings())
    assert plan.batches == (1, 2, 4, 8, 16, 32, 64)
