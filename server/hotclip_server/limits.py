"""The sizes that parts of the server keep to, of its configuration."""

from __future__ import annotations

from hotclip_server.artifacts.uploads import UploadLimits
from hotclip_server.batching.batcher import BatchLimits
from hotclip_server.batching.budget import Budget
from hotclip_server.config import ServerConfig
from hotclip_server.datasets.records import DatasetLimits
from hotclip_server.pipeline import ItemLimits


def batch_limits(config: ServerConfig, device: str) -> BatchLimits:
    """Sizes for the batcher."""
    return BatchLimits(
        max_batch=config.max_batch,
        unmeasured_batch=32 if device == "cpu" else 128,
        budget=Budget(items=config.max_queue_items, nbytes=config.max_queue_bytes),
    )


def item_limits(config: ServerConfig) -> ItemLimits:
    """Sizes for the pipeline."""
    return ItemLimits(
        max_items=config.max_items_per_request,
        max_text_bytes=config.max_text_bytes,
        max_image_bytes=config.max_image_bytes,
    )


def dataset_limits(config: ServerConfig) -> DatasetLimits:
    """Sizes for uploads."""
    return DatasetLimits(
        max_bytes=config.max_dataset_bytes,
        upload_expiry_s=config.upload_expiry_s,
        min_free_disk_bytes=config.min_free_disk_bytes,
        max_image_bytes=config.max_image_bytes,
        max_image_pixels=config.max_image_pixels,
        max_text_bytes=config.max_text_bytes,
    )


def artifact_limits(config: ServerConfig) -> UploadLimits:
    """Sizes for uploaded models."""
    return UploadLimits(
        max_bytes=config.max_artifact_bytes,
        min_free_disk_bytes=config.min_free_disk_bytes,
        expiry_s=config.upload_expiry_s,
    )
