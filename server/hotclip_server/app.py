"""The composition root: the only place that makes long-lived objects."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING

from hotclip_server.artifacts.export_job import ExportHandler, onnx_exporter
from hotclip_server.artifacts.import_job import ImportHandler
from hotclip_server.artifacts.making import make_exporter
from hotclip_server.artifacts.store import ArtifactStore
from hotclip_server.artifacts.uploads import ArtifactUploads
from hotclip_server.batching.batcher import Batcher
from hotclip_server.batching.cache import FeatureCache
from hotclip_server.batching.device import DeviceThread
from hotclip_server.batching.watchdog import Watchdog
from hotclip_server.config import ConfigError, ServerConfig
from hotclip_server.datasets.store import DatasetStore
from hotclip_server.drain import Drain
from hotclip_server.drift.bridge_job import BridgeHandler
from hotclip_server.drift.bridged import BridgedSearcher
from hotclip_server.drift.bridges import Bridges
from hotclip_server.drift.job import DriftHandler
from hotclip_server.drift.traffic import ShadowTraffic
from hotclip_server.encoding.engines.choices import EngineWish
from hotclip_server.encoding.engines.remembered import EngineMemory
from hotclip_server.feedback.datasets import FeedbackDatasets
from hotclip_server.feedback.log import FeedbackLog
from hotclip_server.frontends.supervisor import Frontends
from hotclip_server.health import Health
from hotclip_server.jobs.context import JobHandler
from hotclip_server.jobs.folders import JobFolders
from hotclip_server.jobs.releases import RegistryReleases
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.waiting import LoopWait
from hotclip_server.lifecycle import App, Parts
from hotclip_server.limits import artifact_limits, batch_limits, dataset_limits, item_limits
from hotclip_server.models.engines import EngineSelector
from hotclip_server.models.golden import GoldenProbes
from hotclip_server.models.making import describe_architectures, make_averager, make_merger
from hotclip_server.models.memory import free_bytes_of
from hotclip_server.models.protocol import VersionLoader
from hotclip_server.models.registry import ModelRegistry
from hotclip_server.models.staging import StagingLimits
from hotclip_server.models.trials import Pieces
from hotclip_server.pace import Pace, Pause, never
from hotclip_server.pipeline import EncodePipeline
from hotclip_server.report.reporter import Reporter
from hotclip_server.rpc import SERVICE_NAMES
from hotclip_server.runtime import describe_machine, describe_runtime, resolve_device
from hotclip_server.search.blobs import SourceBlobs
from hotclip_server.search.collections import Collections
from hotclip_server.search.edge import EdgeStore
from hotclip_server.search.protocol import VectorStore
from hotclip_server.services.artifacts import ArtifactService
from hotclip_server.services.datasets import DatasetService
from hotclip_server.services.drift import DriftService
from hotclip_server.services.encode import STREAM_METHOD, EncodeService
from hotclip_server.services.feedback import FeedbackService
from hotclip_server.services.finetune import FineTuneService
from hotclip_server.services.jobs import JobService
from hotclip_server.services.models import ModelService
from hotclip_server.services.search import SearchService
from hotclip_server.services.server_info import ServerService, resident_versions
from hotclip_server.shared_flag import SharedFlag
from hotclip_server.storage.database import Database
from hotclip_server.storage.folder_lock import FolderLock
from hotclip_server.trackers.follower import Followers
from hotclip_server.trackers.known import tracker_maker
from hotclip_server.training.making import make_ground, make_held_out, make_trainers

if TYPE_CHECKING:
    from hotclip_server.encoding.cuda.engine import CudaEngines
    from hotclip_server.encoding.engines.factory import Build, EngineFactory
    from hotclip_server.encoding.engines.onnx_engines import OnnxEngines
    from hotclip_server.encoding.engines.parts import PartThreads
    from hotclip_server.models.store import VersionStore

DATASET_THREADS = 2
"""Uploads and downloads are checked, read and written apart from the pool that requests need."""
VECTORS_TIMEOUT_S = 60.0
"""Of one call of a Qdrant server."""


def build(
    config: ServerConfig,
    *,
    loader: VersionLoader | None = None,
    frontend: str = "hotclip_server.frontends",
) -> App:
    """Makes a server; starts nothing.

    Args:
        loader: Where versions come from instead of the store below the data directory, which
            needs torch. With it the server trains nothing: FineTune and Evaluate answer
            UNIMPLEMENTED.
        frontend: Module that front ends run; it prepares items for the encoders of the loader.

    Raises:
        ConfigError: the device is not there.
    """
    device_name = resolve_device(config.device)
    folder = config.data_dir
    database = Database(config.database)
    dataset_pool = ThreadPoolExecutor(DATASET_THREADS, thread_name_prefix="hotclip-datasets")
    artifacts = ArtifactStore(folder / "artifacts", database, dataset_pool)
    pace = Pace()
    store = None if loader else make_store(config, artifacts, pace)
    versions = loader or store
    if versions is None:
        raise RuntimeError("neither a loader nor a store; this is a bug")
    cuda = make_cuda_engines(device_name) if store else None
    # On a GPU the next batch is copied while one is computed.
    device = DeviceThread(depth=2, is_lost=cuda.device.is_lost) if cuda else DeviceThread()
    waiting = SharedFlag()
    batcher = Batcher(device, batch_limits(config, device_name), tell=waiting.set)
    pace.follow(batcher.pressure_s)
    health = Health(SERVICE_NAMES)
    cache = FeatureCache(config.cache_bytes)
    pipeline = EncodePipeline(batcher, item_limits(config), config.prepare_threads, cache)
    onnx = make_onnx_engines(config) if store else None
    part_threads = make_part_threads(device_name) if store else None
    engines = (
        make_engines(config, device_name, device, batcher, cuda, onnx, pace, part_threads)
        if store
        else None
    )
    registry = ModelRegistry(
        database,
        versions,
        device.run,
        StagingLimits(
            device=device_name,
            free_bytes=free_bytes_of(device_name),
            pressure_s=batcher.pressure_s,
        ),
        engines,
        GoldenProbes(folder / "golden") if store else None,
    )
    datasets = DatasetStore(folder / "datasets", database, dataset_pool, dataset_limits(config))
    vectors = make_vectors(config)
    blobs = SourceBlobs(folder / "sources")
    collections = Collections(
        database,
        vectors,
        registry,
        pipeline,
        blobs,
        max_collections=config.max_collections,
        max_payload_bytes=config.max_payload_bytes,
        max_items=config.max_items_per_request,
    )
    registry.add_flip_participant(collections.catalogue)
    frontends = None
    if config.frontends:
        frontends = Frontends(config, registry, batcher, frontend)
        registry.set_audience(frontends)
    releases = RegistryReleases(registry)
    held_out = make_held_out(device_name, store, datasets) if store else None
    wait = LoopWait()
    bridges = Bridges(database, collections.catalogue)
    handlers: list[JobHandler] = [
        collections.reindexer,
        DriftHandler(database, wait, registry, collections, vectors, datasets, held_out),
        BridgeHandler(database, wait, registry, collections, vectors, bridges),
    ]
    if store is not None and onnx is not None:
        exporter = make_exporter(config, store, artifacts, onnx)
        export, sample = onnx_exporter(exporter), collections.sampler.sample
        handlers += make_trainers(
            config,
            device_name,
            store,
            datasets,
            releases,
            cuda.gate.drawing if cuda else nullcontext,
            export,
            sample,
            waiting,
        )
        handlers += [ExportHandler(exporter), ImportHandler(releases)]
    followers = Followers(database, tracker_maker(config))
    jobs = JobRunner(
        database,
        handlers,
        began=followers.began,
        pressure_s=batcher.pressure_s,
        folders=JobFolders(folder / "checkpoints"),
        resume=config.resume_jobs == "auto",
        left=collections.sweep_shadows,
    )
    drain = Drain(self_ending=[STREAM_METHOD])
    traffic = ShadowTraffic(registry, pipeline, batcher.pressure_s)
    registry.add_flip_participant(traffic)
    if frontends:
        frontends.set_copies(traffic)
    services: list[object] = [
        EncodeService(registry, pipeline, drain, config.max_stream_in_flight, traffic),
        ModelService(
            registry,
            describe_architectures,
            make_merger(store),
            make_averager(store),
            jobs,
            artifacts,
        ),
        ArtifactService(
            artifacts,
            ArtifactUploads(folder / "artifacts" / "uploads", artifacts, artifact_limits(config)),
        ),
        DatasetService(datasets),
        JobService(jobs, Reporter(database, datasets)),
        SearchService(
            collections,
            jobs,
            BridgedSearcher(
                vectors, registry, collections.catalogue, collections.searcher, bridges
            ),
            config.max_items_per_request,
        ),
        FeedbackService(
            FeedbackLog(
                database,
                collections.catalogue,
                vectors,
                most=config.max_feedback,
                max_text_bytes=config.max_text_bytes,
            ),
            FeedbackDatasets(database, collections.catalogue, datasets, blobs),
        ),
        DriftService(
            database,
            jobs,
            registry,
            collections.catalogue,
            datasets,
            config.max_text_bytes,
            traffic,
            bridges,
        ),
        ServerService(
            config,
            describe_runtime(config, device_name),
            lambda: resident_versions(registry),
            lambda: engines is not None and engines.measuring > 0,
        ),
    ]
    if store is not None:
        ground = make_ground(device_name, store)
        services.append(FineTuneService(jobs, datasets, registry, ground, collections.catalogue))
    parts = Parts(
        lock=FolderLock(folder),
        database=database,
        device=device,
        batcher=batcher,
        watchdog=Watchdog(
            lambda: math.inf if device.lost else batcher.stalled_for_s(),
            config.watchdog_s,
            health.set_moving,
        ),
        pipeline=pipeline,
        registry=registry,
        engines=engines,
        part_threads=part_threads,
        onnx=onnx,
        remove_leftovers=store.remove_leftovers if store else lambda: None,
        dataset_pool=dataset_pool,
        datasets=datasets,
        artifacts=artifacts,
        vectors=vectors,
        collections=collections,
        wait=wait,
        traffic=traffic,
        releases=releases,
        jobs=jobs,
        followers=followers,
        health=health,
        drain=drain,
        frontends=frontends,
        services=tuple(services),
    )
    return App(config, parts, device_name)


def make_store(
    config: ServerConfig, artifacts: ArtifactStore | None = None, pause: Pause = never
) -> VersionStore:
    """The store of versions below the data directory. Imports torch."""
    import torch

    from hotclip_server.encoding.image import ImageLimits
    from hotclip_server.models.store import VersionStore

    if config.threads:
        torch.set_num_threads(config.threads)
    return VersionStore(
        config.data_dir / "versions",
        models_dir=config.models_path,
        allow_random_weights=config.allow_random_weights,
        artifacts=artifacts,
        image_limits=ImageLimits(
            max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels
        ),
        pause=pause,
        require_memory=StagingLimits().require,
    )


def make_vectors(config: ServerConfig) -> VectorStore:
    """What keeps vectors: the engine of this machine, or a Qdrant server.

    Raises:
        ConfigError: the client of Qdrant is not installed.
    """
    folder = config.data_dir / "vectors"
    if not config.vectors_url:
        return EdgeStore(folder)
    try:
        from hotclip_server.search.qdrant_store import QdrantStore, connect
    except ModuleNotFoundError as error:
        problem = f"needs pip install 'hotclip[qdrant]': {error}"
        raise ConfigError({"vectors_url": problem}) from error
    client = connect(config.vectors_url, config.vectors_api_key, VECTORS_TIMEOUT_S)
    return QdrantStore(client, folder / "qdrant-namespace")


def make_cuda_engines(device: str) -> CudaEngines | None:
    """The engines of a GPU; None for another device. Imports torch."""
    if not device.startswith("cuda"):
        return None
    from hotclip_server.encoding.cuda.engine import CudaEngines
    from hotclip_server.encoding.cuda.gate import CaptureGate
    from hotclip_server.encoding.cuda.torch_device import TorchDevice

    return CudaEngines(TorchDevice(int(device.partition(":")[2] or 0)), CaptureGate())


def make_onnx_engines(config: ServerConfig) -> OnnxEngines:
    """The engines of ONNX Runtime. Imports torch."""
    from hotclip_server.encoding.engines.onnx_engines import OnnxEngines

    return OnnxEngines(config.data_dir / "graphs", config.threads)


def make_part_threads(device: str) -> PartThreads | None:
    """Threads among which a CPU divides large batches; None for another device. Imports torch."""
    if device != "cpu":
        return None
    from hotclip_server.encoding.engines.parts import PartThreads

    return PartThreads()


def make_factory(
    cuda: CudaEngines | None,
    onnx: OnnxEngines | None,
    pause: Pause = never,
    part_threads: PartThreads | None = None,
) -> EngineFactory:
    """Makes every engine that there is here by name. Imports torch."""
    from hotclip_server.encoding.engines.factory import EngineFactory

    more: dict[str, Build] = {}
    if cuda:
        more["cuda"] = cuda.build
    if onnx:
        more["onnx"] = onnx.build
    return EngineFactory(more, pause, part_threads)


def make_engines(
    config: ServerConfig,
    device_name: str,
    device: DeviceThread,
    batcher: Batcher,
    cuda: CudaEngines | None,
    onnx: OnnxEngines | None,
    pause: Pause = never,
    part_threads: PartThreads | None = None,
) -> EngineSelector:
    """What chooses engines. Imports torch."""
    return EngineSelector(
        make_factory(cuda, onnx, pause, part_threads).build,
        Pieces(device.call, lambda: batcher.ledger.items > 0),
        EngineMemory(
            config.data_dir / "engines.json", describe_machine(device_name, config.threads)
        ),
        EngineWish(engine=config.engine, precision=config.precision),
        device_name,
    )
