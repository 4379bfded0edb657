"""The client that blocks: an index of its methods, which live in files by resource."""

from __future__ import annotations

from types import TracebackType

import grpc

from hotclip._channel import Settings
from hotclip._sync import (
    artifacts,
    bridges,
    datasets,
    drift,
    encoding,
    feedback,
    finetuning,
    jobs,
    server,
    shadow,
)
from hotclip._sync import models as versioning
from hotclip._sync import search as searching
from hotclip._sync.connection import Connection


class Client:
    """Talks to a hotclip server. Threads may share one; make a new one after a fork.

    It connects with the first call. Close it, or use it in a `with`.

    Args:
        address: host:port, or a gRPC target such as dns:///host:port or unix:/path.
        timeout: Seconds that a call may take unless it says otherwise; math.inf: for ever.
        wait_for_ready: Whether calls wait for a connection (until their deadline) instead
            of raising Unavailable at once.
        retries: Whether reads, encode, and creations (which carry a request id) are tried
            up to five times when the server is unavailable.
        credentials: For TLS, see `grpc.ssl_channel_credentials`; None: plain text.

    Raises:
        InvalidArgument: Empty address, or a timeout that is no positive number.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        timeout: float = 60.0,
        wait_for_ready: bool = False,
        retries: bool = True,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        settings = Settings(
            address=address,
            timeout=timeout,
            wait_for_ready=wait_for_ready,
            retries=retries,
            credentials=credentials,
        )
        self._connection = Connection(settings)

    encode = encoding.encode
    encode_stream = encoding.encode_stream
    rank = encoding.rank

    create_collection = searching.create_collection
    get_collection = searching.get_collection
    list_collections = searching.list_collections
    delete_collection = searching.delete_collection
    upsert = searching.upsert
    delete_points = searching.delete_points
    get_points = searching.get_points
    list_points = searching.list_points
    count_points = searching.count_points
    search = searching.search

    record_feedback = feedback.record_feedback
    list_feedback = feedback.list_feedback
    delete_feedback = feedback.delete_feedback
    feedback_dataset = feedback.feedback_dataset

    compare_versions = drift.compare_versions
    drift_report = drift.drift_report
    set_shadow_traffic = shadow.set_shadow_traffic
    shadow_traffic = shadow.shadow_traffic
    clear_shadow_traffic = shadow.clear_shadow_traffic
    reindex = bridges.reindex
    drop_shadow = bridges.drop_shadow
    fit_bridge = bridges.fit_bridge
    get_bridge = bridges.get_bridge
    delete_bridge = bridges.delete_bridge

    upload_dataset = datasets.upload_dataset
    get_dataset = datasets.get_dataset
    list_datasets = datasets.list_datasets
    delete_dataset = datasets.delete_dataset
    download_dataset = datasets.download_dataset

    export = artifacts.export
    get_artifact = artifacts.get_artifact
    list_artifacts = artifacts.list_artifacts
    delete_artifact = artifacts.delete_artifact
    download_artifact = artifacts.download_artifact
    import_version = artifacts.import_version

    finetune = finetuning.finetune
    evaluate = finetuning.evaluate
    get_job = jobs.get_job
    list_jobs = jobs.list_jobs

    models = versioning.models
    get_model = versioning.get_model
    versions = versioning.versions
    get_version = versioning.get_version
    backbones = versioning.backbones
    architectures = versioning.architectures
    load_version = versioning.load_version
    activate = versioning.activate
    rollback = versioning.rollback
    unload_version = versioning.unload_version
    delete_version = versioning.delete_version
    merge_versions = versioning.merge_versions
    watch_models = versioning.watch_models

    server_info = server.server_info
    is_ready = server.is_ready
    wait_ready = server.wait_ready

    def close(self) -> None:
        """Ends every call and the connection; harmless if done already."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._connection.settings.address!r})"
