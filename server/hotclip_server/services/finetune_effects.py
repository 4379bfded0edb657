"""What a request gives and its data leave without effect: known once their sizes are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from hotclip_proto.v1 import finetune_pb2 as pb
from hotclip_server.datasets.records import DatasetRecord
from hotclip_server.errors import FieldViolation
from hotclip_server.services.finetune_choices import choice_of
from hotclip_server.training.config import Method


def method_problems(
    request: pb.FineTuneRequest, method: Method, pairs: int
) -> Iterator[FieldViolation]:
    """Options of a method that "auto" did not choose.

    Args:
        method: The one that it chose.
        pairs: By how many.
    """
    if choice_of("method", request.method) != "auto":
        return  # the request alone tells what is of use
    why = f"is of no use with the method auto, which is {method} for {pairs} training pairs"
    # 1 is off: any method does without.
    if method == "lora" and request.HasField("layer_decay") and request.layer_decay != 1:
        yield FieldViolation("layer_decay", f"{why}: ask for the method full")
    if method != "lora" and request.HasField("lora"):
        yield FieldViolation("lora", f"{why}: ask for the method lora")


def prompt_problems(
    prompts: Sequence[str], datasets: Iterable[DatasetRecord]
) -> Iterator[FieldViolation]:
    """Templates where no image wants a text.

    Args:
        datasets: All that are trained on, measured with or searched among.
    """
    if prompts and not any(dataset.counts.uncaptioned_pairs for dataset in datasets):
        reason = "are texts of labelled images without one, and no row of the data is such: leave "
        yield FieldViolation("prompts", f"{reason}them out")
