"""Which engine serves: the fastest that passes on the version's own weights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from support.registry import PLENTY
from support.versions import FakeLoader

from hotclip_server.encoding.engines.choices import EngineWish
from hotclip_server.encoding.engines.remembered import EngineMemory
from hotclip_server.encoding.protocol import Encoder, Prepared, Tower
from hotclip_server.errors import DeviceLost
from hotclip_server.models.engines import EngineSelector
from hotclip_server.models.staging import Stager
from hotclip_server.models.state import VersionRecord
from hotclip_server.models.trials import Pieces
from hotclip_server.testing import FakeEncoder

from .engine_fakes import FakeHost, Workshop

T = TypeVar("T")
SPEEDS = {"eager/fp32": 4e-4, "torch/fp32": 2e-4, "torch/bf16": 1e-4}


async def on_device(work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work)


@asynccontextmanager
async def selector(
    folder: Path, workshop: Workshop, wish: EngineWish | None = None
) -> AsyncIterator[EngineSelector]:
    memory = EngineMemory(folder / "engines.json", "machine")
    pieces = Pieces(on_device, lambda: False)
    made = EngineSelector(workshop, pieces, memory, wish or EngineWish(), "cpu", 0.0)
    made.start()
    try:
        yield made
    finally:
        await made.stop()


async def settled(chosen: EngineSelector) -> None:
    async with asyncio.timeout(30):
        while chosen.measuring:  # noqa: ASYNC110 - a count that nobody else waits for
            await asyncio.sleep(0.01)


async def fit(chosen: EngineSelector, version: str, encoder: Encoder) -> None:
    unmeasured = await chosen.fit(version, encoder)
    if unmeasured is not None:
        chosen.measure(unmeasured)


def serving(host: FakeHost) -> list[str]:
    return [str(host.engine(tower)) for tower in Tower]


async def test_the_fastest_that_passes_takes_the_place_of_plain_open_clip(tmp_path: Path) -> None:
    workshop = Workshop(SPEEDS)
    host = FakeHost()
    async with selector(tmp_path, workshop) as chosen:
        await fit(chosen, "v", host)
        assert serving(host) == ["eager/fp32"] * 2  # until it is measured
        assert not host.released
        await settled(chosen)
    assert serving(host) == ["torch/bf16"] * 2
    assert host.released
    for tower in Tower:
        figures = host.figures(tower)
        assert figures is not None
        assert figures.best_batch >= 1
        assert figures.items_per_s > 1000
    kept = list(host.installed.values())
    assert all(engine.closed == (engine not in kept) for engine in workshop.made)


async def test_what_does_not_pass_is_not_taken(tmp_path: Path) -> None:
    workshop = Workshop(SPEEDS, error={"torch/bf16": 0.3, "torch/fp32": 0.05})
    host = FakeHost()
    async with selector(tmp_path, workshop) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host) == ["eager/fp32"] * 2
    assert host.figures(Tower.TEXT) is not None


async def test_less_exact_and_hardly_faster_is_not_taken(tmp_path: Path) -> None:
    speeds = {"eager/fp32": 20e-4, "torch/fp32": 10e-4, "torch/bf16": 9.7e-4}
    host = FakeHost()
    async with selector(tmp_path, Workshop(speeds)) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host) == ["torch/fp32"] * 2


async def test_a_restart_measures_nothing_and_builds_one_engine(tmp_path: Path) -> None:
    async with selector(tmp_path, Workshop(SPEEDS)) as chosen:
        await fit(chosen, "v", FakeHost())
        await settled(chosen)
    workshop, host = Workshop(SPEEDS), FakeHost()
    async with selector(tmp_path, workshop) as chosen:
        await fit(chosen, "v", host)
        assert chosen.measuring == 0
        assert serving(host) == ["torch/bf16"] * 2
        assert host.released
        assert [engine.sizes for engine in workshop.made] == [[], []]  # verified already
        assert host.figures(Tower.VISION) is not None


async def test_another_version_gets_it_at_once_if_its_weights_pass(tmp_path: Path) -> None:
    workshop = Workshop(SPEEDS, error={"torch/bf16 bad": 0.3, "torch/fp32 worse": 0.3})
    workshop.error["torch/bf16 worse"] = 0.3
    async with selector(tmp_path, workshop) as chosen:
        await fit(chosen, "v", FakeHost())
        await settled(chosen)
        good, bad, worse = FakeHost("good"), FakeHost("bad"), FakeHost("worse")
        for name, host in (("g", good), ("b", bad), ("w", worse)):
            await fit(chosen, name, host)
            assert chosen.measuring == 0
        assert serving(good) == ["torch/bf16"] * 2
        assert serving(bad) == ["torch/fp32"] * 2
        assert serving(worse) == ["eager/fp32"] * 2
        built = workshop.count("torch/bf16")
        await fit(chosen, "b", FakeHost("bad"))
        assert workshop.count("torch/bf16") == built  # known to fail


async def test_what_won_is_remembered_also_if_the_machine_was_busier_then(tmp_path: Path) -> None:
    class Slowing(Workshop):
        def __call__(self, choice, source):  # type: ignore[no-untyped-def]  # as in the base
            engine = super().__call__(choice, source)
            if str(choice) == "torch/fp32":  # races with bf16, after bf16 did with plain open_clip
                for one in self.made:
                    one.slow_down(10)
            return engine

    speeds = {"eager/fp32": 4e-4, "torch/bf16": 2e-4, "torch/fp32": 1e-4}
    async with selector(tmp_path, Slowing(speeds)) as chosen:
        for name in ("v", "w"):
            host = FakeHost()
            await fit(chosen, name, host)
            await settled(chosen)
            assert serving(host) == ["torch/fp32"] * 2
            assert host.figures(Tower.TEXT) is not None


async def test_nothing_is_exported_where_an_engine_serves_already(tmp_path: Path) -> None:
    workshop = Workshop({**SPEEDS, "onnx/fp32": 0.5e-4})
    host = FakeHost()
    async with selector(tmp_path, workshop) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host) == ["torch/bf16"] * 2
    assert workshop.count("onnx/fp32") == 0
    alone = Workshop({"eager/fp32": 4e-4, "onnx/fp32": 1e-4})
    host = FakeHost(shape="another")
    async with selector(tmp_path, alone) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host) == ["onnx/fp32"] * 2


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (EngineWish(engine="eager", precision="fp32"), "eager/fp32"),
        (EngineWish(engine="torch", precision="fp32"), "torch/fp32"),
        (EngineWish(engine="auto", precision="fp32"), "torch/fp32"),
        (EngineWish(engine="onnx", precision="auto"), "eager/fp32"),
    ],
)
async def test_what_is_asked_for(wish: EngineWish, expected: str, tmp_path: Path) -> None:
    host = FakeHost()
    async with selector(tmp_path, Workshop(SPEEDS), wish) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host) == [expected] * 2


async def test_a_version_that_was_closed_is_forgotten(tmp_path: Path) -> None:
    gone, next_one = FakeHost(), FakeHost()
    gone.gone = True
    async with selector(tmp_path, Workshop(SPEEDS)) as chosen:
        await fit(chosen, "v", gone)
        await fit(chosen, "w", next_one)
        await settled(chosen)
    assert serving(next_one) == ["torch/bf16"] * 2


async def test_an_engine_that_raises_does_not_serve(tmp_path: Path) -> None:
    class Broken(Workshop):
        def __call__(self, choice, source):  # type: ignore[no-untyped-def]  # as in the base
            if str(choice) == "torch/bf16":
                raise RuntimeError("out of something")
            return super().__call__(choice, source)

    host = FakeHost()
    async with selector(tmp_path, Broken(SPEEDS)) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host) == ["torch/fp32"] * 2


async def test_an_encoder_without_engines_is_left_alone(tmp_path: Path) -> None:
    async with selector(tmp_path, Workshop(SPEEDS)) as chosen:
        await fit(chosen, "v", FakeEncoder("x"))
        assert chosen.measuring == 0


async def test_an_engine_that_raises_while_it_runs_is_left_out(tmp_path: Path) -> None:
    workshop = Workshop(SPEEDS, broken={"torch/bf16"})
    host = FakeHost()
    async with selector(tmp_path, workshop) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host) == ["torch/fp32"] * 2
    kept = list(host.installed.values())
    assert all(engine.closed == (engine not in kept) for engine in workshop.made)


async def test_what_serves_does_not_depend_on_what_can_be_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't remember")

    monkeypatch.setattr(EngineMemory, "remember_ranking", fail)
    host = FakeHost()
    async with selector(tmp_path, Workshop(SPEEDS)) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host)[0] == "torch/bf16"  # the first tower that is measured


async def test_who_failed_for_the_moment_is_tried_again_after_a_restart(tmp_path: Path) -> None:
    class Short(Workshop):
        def __call__(self, choice, source):  # type: ignore[no-untyped-def]  # as in the base
            if str(choice) == "torch/bf16":
                raise MemoryError
            return super().__call__(choice, source)

    host = FakeHost()
    async with selector(tmp_path, Short(SPEEDS)) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host) == ["torch/fp32"] * 2
    host = FakeHost()
    async with selector(tmp_path, Workshop(SPEEDS)) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert serving(host) == ["torch/bf16"] * 2


async def test_nothing_stays_open_of_a_version_that_goes_meanwhile(tmp_path: Path) -> None:
    host = FakeHost()

    class Leaving(Workshop):
        def __call__(self, choice, source):  # type: ignore[no-untyped-def]  # as in the base
            host.gone = host.gone or str(choice) == "torch/bf16"
            return super().__call__(choice, source)

    workshop = Leaving(SPEEDS)
    async with selector(tmp_path, workshop) as chosen:
        await fit(chosen, "v", host)
        await settled(chosen)
    assert host.gone
    assert not host.installed
    assert [engine.closed for engine in workshop.made] == [1] * len(workshop.made)


@pytest.mark.parametrize(
    ("wish", "error", "expected"),
    [
        (EngineWish(engine="torch", precision="fp32"), 0.0, "torch/fp32"),
        (EngineWish(engine="torch"), 0.0, "torch/bf16"),
        (EngineWish(precision="bf16"), 0.0, "torch/bf16"),
        (EngineWish(engine="torch", precision="fp32"), 0.3, "eager/fp32"),
        (EngineWish(precision="fp32"), 0.0, "eager/fp32"),  # which is what was asked for
        (EngineWish(), 0.0, "eager/fp32"),
    ],
)
async def test_what_is_asked_for_need_not_be_faster(
    wish: EngineWish, error: float, expected: str, tmp_path: Path
) -> None:
    speeds = {"eager/fp32": 1e-4, "torch/fp32": 12e-4, "torch/bf16": 6e-4}
    workshop = Workshop(speeds, error={"torch/fp32": error})
    first, second = FakeHost(), FakeHost()
    async with selector(tmp_path, workshop, wish) as chosen:
        await fit(chosen, "v", first)
        await settled(chosen)
        await fit(chosen, "w", second)
        assert chosen.measuring == 0
    assert serving(first) == [expected] * 2
    assert serving(second) == [expected] * 2


async def test_nothing_is_measured_of_a_version_that_may_not_serve(tmp_path: Path) -> None:
    class Hosts(FakeLoader):
        def load(self, version_id: str, *, device: str) -> Encoder:
            return FakeHost()

    async with selector(tmp_path, Workshop(SPEEDS)) as chosen:
        measuring = []

        async def run(
            encoder: Encoder, tower: Tower, batch: Sequence[Prepared]
        ) -> NDArray[np.float32]:
            measuring.append(chosen.measuring)
            raise DeviceLost

        loader = Hosts()
        manifest = replace(loader.import_source("fake:a"), spec=FakeHost().spec)
        now = datetime.now(UTC)
        record = VersionRecord(manifest=manifest, model="default", create_time=now, metrics={})
        stager = Stager(loader, run, PLENTY, chosen)
        try:
            with pytest.raises(DeviceLost):
                await stager.load(record)
        finally:
            stager.stop()
        assert measuring == [0]
        assert chosen.measuring == 0
