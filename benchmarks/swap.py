"""The suite swap: what callers notice of versions that go live beside their calls.

A round has two windows with the same calls at the same moments: one in which versions are
activated and rolled back, the first of them from disk, and one of the same length in which
nothing happens.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import psutil

from benchmarks.corpus import write_corpus
from benchmarks.encode_model import START_S, note
from benchmarks.engines import wait_for_engines
from benchmarks.figures import Figure
from benchmarks.history import Asked, Move, relative_growth, violations
from benchmarks.server_process import ServerProcess, running_server
from benchmarks.settings import Settings, label
from benchmarks.swap_load import CONTENTS
from benchmarks.timing import percentile, pooled_interval
from benchmarks.variants import write_variant
from benchmarks.worker import Worker, WorkerFailed
from hotclip import Client, Model

MODELS = ("builtin:mini", "ViT-B-32::")
LOAD_SHARE = 0.5
"""Of what many clients reach together."""
PAUSES = 25
"""Pauses between two moves in the seconds of a segment."""
LEAST_ALLOWED_MS = 5.0
"""That a move may add to the longest pause, if a batch takes no longer."""
SETTLED_ROUNDS = 0.75
"""Share of the rounds, the last ones, in which memory must not grow."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one model."""

    rounds: int = 10
    moves: int = 20
    """Of a round; the first activates a version from disk."""
    items: int = 32
    """Of each kind."""
    clients: int = 32
    """That together show what the server can do."""


QUICK = Plan(rounds=2, moves=4, items=8, clients=4)


@dataclass
class Seen:
    """What the rounds of one model gave."""

    moves: list[Move] = field(default_factory=list)
    rollbacks_ms: list[float] = field(default_factory=list)
    activations_ms: list[float] = field(default_factory=list)
    """Of versions in memory."""
    stagings: list[Move] = field(default_factory=list)
    """Activations of versions on disk."""
    in_memory: list[Move] = field(default_factory=list)
    """All other moves."""
    swapped: list[dict[str, Any]] = field(default_factory=list)
    """Windows with moves, as the load reports them."""
    control: list[dict[str, Any]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    """Bytes that the server holds, at the end of each round."""


def swap(settings: Settings) -> Iterator[Figure]:
    """Every figure of every model, then the sums.

    Raises:
        WorkerFailed: the load could not be sent, or two versions can't be told apart.
    """
    plan = QUICK if settings.quick else Plan()
    found: list[Figure] = []
    for source in settings.models or MODELS:
        for figure in measure_swaps(source, plan, settings):
            found.append(figure)
            yield figure
    for name in ("failed", "refused", "mixed", "linearisability_violations"):
        parts = [one for one in found if one.name.startswith(f"swap.{name}.")]
        yield Figure(
            name=f"swap.{name}",
            value=sum(one.value for one in parts),
            unit=parts[0].unit,
            baseline=sum(one.baseline or 0.0 for one in parts),
        )
    for name in ("memory_slope", "rollback_ms"):
        parts = [one for one in found if one.name.startswith(f"swap.{name}.")]
        worst = max(parts, key=lambda figure: figure.value)
        yield Figure(name=f"swap.{name}", value=worst.value, unit=worst.unit)


def measure_swaps(source: str, plan: Plan, settings: Settings) -> Iterator[Figure]:
    """The rounds of one model, through a server of its own."""
    with tempfile.TemporaryDirectory(prefix="hotclip-bench-") as name:
        folder = Path(name)
        options = ("--model", source, "--models-dir", str(folder / "models"))
        (folder / "models").mkdir()
        with (
            running_server(
                folder / "data",
                *options,
                *("--device", settings.device, "--allow-random-weights"),
                *settings.server_options,
                program=settings.program,
                start_s=START_S,
            ) as server,
            Client(server.address, timeout=START_S) as client,
            Worker("benchmarks.swap_load") as load,
        ):
            rounds = Rounds(source, plan, settings, server, client, load)
            rounds.prepare(folder)
            yield from figures_of(label(source), rounds.run(), rounds.first, rounds.batch_ms)


class Rounds:
    """Three versions of one model, and the moves between them."""

    def __init__(
        self,
        source: str,
        plan: Plan,
        settings: Settings,
        server: ServerProcess,
        client: Client,
        load: Worker,
    ) -> None:
        self._model, self._plan, self._settings = label(source), plan, settings
        self._process = psutil.Process(server.pid)
        self._server, self._client, self._load = server, client, load
        self._versions: list[str] = []
        self._rate = 0.0
        self.first = ""
        """Live before the first move that counts."""
        self.batch_ms = 0.0
        """Time of a call of one item, when nobody else asks."""

    def prepare(self, folder: Path) -> None:
        """Makes two more versions, computes what is right for each, and finds half the load."""
        serving = wait_for_engines(self._client)
        corpus, stored = folder / "corpus", folder / "data" / "versions"
        write_corpus(
            corpus / "items", dict.fromkeys(CONTENTS, self._plan.items), serving.image_size
        )
        exact = {serving.version: serving.exact}
        for seed, name in enumerate("bc", start=1):
            write_variant(stored / serving.version, folder / "models" / name, seed=seed)
            version = self._client.load_version(f"local:{name}").id
            exact[version] = self._exact(version)
        self._versions = list(exact)
        with Worker("benchmarks.plain") as plain:
            for version in exact:
                shutil.copytree(corpus / "items", corpus / version)
                told = {"folder": str(stored / version), "device": self._settings.device}
                plain.ask("load", {**told, "corpus": str(corpus / version)})
                for content in CONTENTS:
                    plain.ask("references", {"content": content, "count": self._plan.items})
        self._load.ask(
            "connect",
            {
                "address": self._server.address,
                "corpus": str(corpus),
                "server_pid": self._server.pid,
                "exact": exact,
            },
        )
        seconds = {"seconds": self._settings.seconds / 2}
        self._client.activate(self._versions[-1])  # from here on there is one to return to
        self.batch_ms = self._load.ask("alone", {"content": "tensor", **seconds})["p50_ms"]
        most = self._load.ask("most", {"clients": self._plan.clients, **seconds})["rate"]
        self._rate = LOAD_SHARE * most
        note(
            f"{self._model}: {most:.1f} calls/s at most, a call of one image takes "
            f"{self.batch_ms:.1f} ms, versions {', '.join(self._versions)}"
        )

    def run(self) -> Seen:
        """All rounds, after one that does not count: engines of new versions are built once more
        and code is compiled in it."""
        self._window(Seen(), seed=0, moves=self._plan.moves)
        self.first = self._client.get_model().live_version
        seen = Seen()
        for turn in range(self._plan.rounds):
            began = time.monotonic()
            seen.swapped.append(self._window(seen, seed=turn, moves=self._plan.moves))
            seconds = time.monotonic() - began
            seen.control.append(self._window(seen, seed=turn, moves=0, seconds=seconds))
            seen.memory.append(self._memory())
            note(
                f"{self._model} {turn + 1}/{self._plan.rounds}: {seconds:.1f} s, from disk "
                f"{_length(seen.stagings[-1]):.2f} s; longest pause "
                f"{seen.swapped[-1]['pause_ms']:.1f} ms, without moves "
                f"{seen.control[-1]['pause_ms']:.1f} ms; {seen.memory[-1] / 2**20:.0f} MiB"
            )
        return seen

    def _window(self, seen: Seen, *, seed: int, moves: int, seconds: float = 0.0) -> dict[str, Any]:
        """What the load reports of a window with so many moves, or of so many seconds."""
        self._load.ask("begin", {"rate": self._rate, "seed": seed})
        began = time.monotonic()
        for move in range(moves):
            time.sleep(self._settings.seconds / PAUSES)
            self._move(seen, move)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        return self._load.ask("end")

    def _move(self, seen: Seen, number: int) -> None:
        before = self._client.get_model()
        called = time.monotonic()
        if number == 0:
            (target,) = set(self._versions) - {before.live_version, before.previous_version}
            self._require_stored(target)
            called = time.monotonic()
            after = self._client.activate(target)
        elif number % 2:
            target = before.previous_version
            after = self._client.rollback(etag=before.etag)
            seen.rollbacks_ms.append(1000 * (time.monotonic() - called))
        else:
            target = before.previous_version
            after = self._client.activate(target, etag=before.etag)
            seen.activations_ms.append(1000 * (time.monotonic() - called))
        done = Move(called, time.monotonic(), target)
        seen.moves.append(done)
        (seen.in_memory if number else seen.stagings).append(done)
        self._require(after, before, target)

    def _require(self, after: Model, before: Model, target: str) -> None:
        told = (after.live_version, after.previous_version)
        if told != (target, before.live_version):
            raise WorkerFailed(f"asked for {target} in place of {before.live_version}, got {told}")

    def _require_stored(self, version: str) -> None:
        if (state := self._client.get_version(version).state) != "STORED":
            raise WorkerFailed(f"version {version} should be on disk only, but is {state}")

    def _exact(self, version: str) -> dict[str, bool]:
        """By tower, once its engines are chosen; it must be in memory."""
        wait_for_engines(self._client)
        info = next(v for v in self._client.server_info().versions if v.version == version)
        return {engine.tower: engine.precision == "fp32" for engine in info.engines}

    def _memory(self) -> float:
        processes = (self._process, *self._process.children(recursive=True))
        return float(sum(process.memory_info().rss for process in processes))


def figures_of(model: str, seen: Seen, first: str, batch_ms: float) -> Iterator[Figure]:
    """The figures of one model.

    Args:
        first: Live before the first move.
        batch_ms: What a batch takes.
    """
    asked = [Asked(*call) for window in seen.swapped for call in window["asked"]]
    wrong = violations(first, seen.moves, _in_windows(seen))
    for name, key in (("failed", "errors"), ("refused", "refused")):
        sums = [
            float(sum(sum(window[key].values()) for window in windows))
            for windows in (seen.swapped, seen.control)
        ]
        for window in (*seen.swapped, *seen.control):
            for what, count in window[key].items():
                note(f"{model}: {name} {count} x {what}")
        yield Figure(name=f"swap.{name}.{model}", value=sums[0], unit="calls", baseline=sums[1])
    mixed = [[m for window in windows for m in window["mixed"]] for windows in _both(seen)]
    for mistake in (*mixed[0], *mixed[1])[:10]:
        note(f"{model}: {mistake}")
    yield Figure(
        name=f"swap.mixed.{model}",
        value=float(len(mixed[0])),
        unit="vectors",
        baseline=float(len(mixed[1])),
    )
    yield Figure(
        name=f"swap.linearisability_violations.{model}", value=float(len(wrong)), unit="calls"
    )
    yield _pause(model, seen, batch_ms)
    swapped, control = ([_latencies(one) for one in windows] for windows in _both(seen))
    usual = percentile(list(chain(*control)), 99)
    yield Figure(
        name=f"swap.p99_ratio.{model}",
        value=percentile(list(chain(*swapped)), 99) / usual,
        unit="ratio",
        baseline=usual,
        interval=pooled_interval(swapped, control, 99),
        generator_cpu=statistics.median(one["generator_cpu"] for one in seen.swapped),
        server_cpu=statistics.median(one["server_cpu"] for one in seen.swapped),
    )
    settled = seen.memory[-max(2, round(SETTLED_ROUNDS * len(seen.memory))) :]
    yield Figure(
        name=f"swap.memory_slope.{model}",
        value=abs(relative_growth(settled)),
        unit="share",
        baseline=statistics.median(settled),
    )
    for name, moves in (("staging", seen.stagings), ("moves", seen.in_memory)):
        if beside := _latencies_beside(moves, asked):
            yield Figure(
                name=f"swap.{name}_p99_ratio.{model}",
                value=percentile(beside, 99) / usual,
                unit="ratio",
                baseline=usual,
            )
    counts = {"moves": len(seen.moves), "from_disk": len(seen.stagings), "checked": len(asked)}
    medians = {
        "rollback_ms": (statistics.median(seen.rollbacks_ms), "ms"),
        "activate_ms": (statistics.median(seen.activations_ms), "ms"),
        "stage_s": (statistics.median(map(_length, seen.stagings)), "s"),
        "load.calls_per_s": (sum(map(len, control)) / _seconds(seen.control), "calls/s"),
        **{name: (float(count), "") for name, count in counts.items()},
    }
    for name, (value, unit) in medians.items():
        yield Figure(name=f"swap.{name}.{model}", value=value, unit=unit)


def _pause(model: str, seen: Seen, batch_ms: float) -> Figure:
    """The longest of all windows; a move may add a batch or 5 ms."""
    swapped, control = (max(one["pause_ms"] for one in windows) for windows in _both(seen))
    allowed = control + max(batch_ms, LEAST_ALLOWED_MS)
    return Figure(
        name=f"swap.longest_gap_ms.{model}",
        value=swapped,
        unit="ms",
        baseline=control,
        target=allowed,
        passed=swapped <= allowed,
    )


def _length(move: Move) -> float:
    return move.returned - move.called


def _both(seen: Seen) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return seen.swapped, seen.control


def _in_windows(seen: Seen) -> list[Asked]:
    return [Asked(*call) for windows in _both(seen) for one in windows for call in one["asked"]]


def _latencies(window: dict[str, Any]) -> list[float]:
    """Milliseconds from the planned arrival, of every call of a window."""
    calls = [Asked(*call) for call in window["asked"]]
    return [1000 * (call.answered - call.planned) for call in calls]


def _latencies_beside(moves: Sequence[Move], asked: Sequence[Asked]) -> list[float]:
    """Likewise, of the calls that were under way in one of some moves."""
    return [
        1000 * (call.answered - call.planned)
        for call in asked
        if any(one.called <= call.answered and call.planned <= one.returned for one in moves)
    ]


def _seconds(windows: list[dict[str, Any]]) -> float:
    """Between the first and the last call of each, added."""
    total = 0.0
    for window in windows:
        sent = [call[1] for call in window["asked"]]
        total += max(sent) - min(sent)
    return total
