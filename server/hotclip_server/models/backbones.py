"""Published weights that are a good beginning, with what a person chooses them by.

Licences are those that the publishers state on the model cards; they bind whoever uses the
weights.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """What `LoadVersion` takes as `source`, described."""

    source: str
    description: str
    languages: str
    """Of the captions: "en" or "multilingual"."""
    license: str
    """Of the weights."""
    parameters: int
    """Numbers in both towers."""
    dim: int
    """Elements of a vector."""
    image_size: int
    """Pixels: height and width of the model's input."""
    context_length: int = 77
    """Tokens: longest text."""


BACKBONES = (
    Backbone(
        source="builtin:mini",
        description="Emoji drawings by name; comes with the server, for trials and tests.",
        languages="en",
        license="Apache-2.0",
        parameters=4_191_989,
        dim=128,
        image_size=64,
        context_length=16,
    ),
    Backbone(
        source="ViT-B-32::openai",
        description="The first CLIP, with which most older vectors were made.",
        languages="en",
        license="MIT",
        parameters=151_277_313,
        dim=512,
        image_size=224,
    ),
    Backbone(
        source="ViT-B-32::laion2b_s34b_b79k",
        description="As fast as OpenAI's and better; a good first choice on a CPU.",
        languages="en",
        license="MIT",
        parameters=151_277_313,
        dim=512,
        image_size=224,
    ),
    Backbone(
        source="ViT-B-32-256::datacomp_s34b_b86k",
        description="The best of the fast ones: more pixels, cleaner data.",
        languages="en",
        license="MIT",
        parameters=151_288_833,
        dim=512,
        image_size=256,
    ),
    Backbone(
        source="ViT-B-16::datacomp_xl_s13b_b90k",
        description="Sees finer detail, at three to four times the work of B-32.",
        languages="en",
        license="MIT",
        parameters=149_620_737,
        dim=512,
        image_size=224,
    ),
    Backbone(
        source="ViT-B-16-SigLIP::webli",
        description="Sigmoid loss; strong for its size, short texts.",
        languages="en",
        license="Apache-2.0",
        parameters=203_155_970,
        dim=768,
        image_size=224,
        context_length=64,
    ),
    Backbone(
        source="xlm-roberta-base-ViT-B-32::laion5b_s13b_b90k",
        description="Text in a hundred languages, images as fast as B-32.",
        languages="multilingual",
        license="MIT",
        parameters=366_121_473,
        dim=512,
        image_size=224,
    ),
    Backbone(
        source="ViT-B-16-SigLIP2::webli",
        description="Sigmoid loss with captioning and self-distillation; many languages.",
        languages="multilingual",
        license="Apache-2.0",
        parameters=375_187_970,
        dim=768,
        image_size=224,
        context_length=64,
    ),
    Backbone(
        source="ViT-L-14::datacomp_xl_s13b_b90k",
        description="Large; for a GPU.",
        languages="en",
        license="MIT",
        parameters=427_616_513,
        dim=768,
        image_size=224,
    ),
    Backbone(
        source="ViT-H-14::laion2b_s32b_b79k",
        description="Very large; for a GPU.",
        languages="en",
        license="MIT",
        parameters=986_109_441,
        dim=1024,
        image_size=224,
    ),
    Backbone(
        source="xlm-roberta-large-ViT-H-14::frozen_laion5b_s13b_b90k",
        description="Very large, text in a hundred languages; for a GPU.",
        languages="multilingual",
        license="MIT",
        parameters=1_193_014_785,
        dim=1024,
        image_size=224,
    ),
)
"""The built-in one, then the smallest first."""
