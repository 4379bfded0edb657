"""Real emoji with German names: fine-tune while the server encodes, and search gets better."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import grpc
import pytest
from support.learning import Stubs
from support.server import ServerProcess

from hotclip_examples.emoji import EmojiPair, emoji_task, pair_image
from hotclip_proto.v1 import encode_pb2, finetune_pb2, job_pb2, types_pb2

TEXT_RANK = "clip-text-to-clip-vision_reciprocal_rank"


class Load:
    """Encodes one text after the other on a thread of its own."""

    def __init__(self, address: str) -> None:
        self.versions: list[str] = []
        self.failed: list[grpc.RpcError] = []
        self.longest_s = 0.0
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        items = [types_pb2.EncodeItem(text="ein roter Apfel")]
        with grpc.insecure_channel(self._address) as channel:
            encoding = Stubs(channel).encoding
            while not self._stop.wait(0.02):
                began = time.monotonic()
                try:
                    answer = encoding.Encode(encode_pb2.EncodeRequest(items=items), timeout=30)
                except grpc.RpcError as error:
                    self.failed.append(error)
                else:
                    self.versions.append(answer.version)
                    self.longest_s = max(self.longest_s, time.monotonic() - began)


@pytest.mark.alone
def test_german_names_find_more_after_a_fine_tune_under_load(
    make_server: Callable[..., ServerProcess],
) -> None:
    task = emoji_task(concepts=150)

    def drawn(pairs: Sequence[EmojiPair]) -> list[tuple[bytes, str]]:
        return [(pair_image(pair, 48), pair.text) for pair in pairs]

    server = make_server()
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs(channel)
        base = stubs.live()
        for name, pairs in (("train", task.train), ("queries", task.queries)):
            assert stubs.upload(name, drawn(pairs)).pairs == len(pairs)
        stubs.upload("index", drawn(task.index))
        with Load(server.address) as load:
            stubs.tuning.FineTune(
                finetune_pb2.FineTuneRequest(
                    name="german",
                    train_dataset="train",
                    eval_dataset="queries",
                    index_dataset="index",
                    method=finetune_pb2.METHOD_FULL,
                    epochs=12,
                    batch_size=64,
                    learning_rate=1e-3,
                )
            )
            job = stubs.wait("german")
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
            assert stubs.live() == job.result_version
        assert job.activated
        assert not load.failed
        assert set(load.versions) <= {base, job.result_version}
        events = stubs.jobs.WatchJob(job_pb2.WatchJobRequest(job="german"))
        ranks = {
            event.metric.stage: metric.value
            for event in events
            for metric in event.metric.metrics
            if metric.name == TEXT_RANK
        }
        before = ranks[job_pb2.MetricEvent.STAGE_BEFORE]
        after = ranks[job_pb2.MetricEvent.STAGE_AFTER]
        print(f"MRR {before:.3f} to {after:.3f}; longest Encode {load.longest_s * 1000:.0f} ms")
        assert after > 1.5 * before
