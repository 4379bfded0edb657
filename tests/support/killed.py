"""`python -m support.killed <folder> <seed> <kills> <plan>`: one fine-tune, killed again and again.

Imports everything once and forks a process for each life of the server, which kills itself at a
moment that the seed chooses. With isolation PROCESS the process that trains does so, one after the
other for the same server, and now and then the server is killed too; it is the real one of
`hotclip_server.training.child`, but for its stores, forked instead of begun anew. Prints a JSON
object for the test.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from support.jobs import all_events, open_database
from torch import nn

from hotclip_server.jobs.folders import JobFolders
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.specs import ActivationRule, FineTuneSpec, Isolation
from hotclip_server.jobs.states import JobState
from hotclip_server.models.protocol import VersionManifest
from hotclip_server.shared_flag import SharedFlag
from hotclip_server.training import child, child_work
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import CROPS, TrainConfig
from hotclip_server.training.finetune_job import FineTuneHandler
from hotclip_server.training.finetune_work import Roots, Workplace

# Some libraries install a package of this name, and it would be found first.
tests = types.ModuleType("tests")
tests.__path__ = [str(Path(__file__).parents[1])]
sys.modules["tests"] = tests

from tests.unit.training.test_finetune_job import Desk, Sets, Shelf  # noqa: E402
from tests.unit.training.tiny import tiny_clip  # noqa: E402

NAME = "victim"
KILLS, MADE = "kills", "made.json"
"""Files of a run: a byte for each kill of what trains, and what came of it."""
SERVERS = 3
"""Lives of the server with isolation PROCESS that end with its own death."""
CONFIG = TrainConfig(
    epochs=60,
    batch_size=6,
    chunk_size=4,
    learning_rate=1e-3,
    method="full",
    ema=0.1,
    augment=CROPS,
)
SPEC = FineTuneSpec(
    model="default",
    base_version="base",
    train_dataset="ds-1",
    eval_dataset="ds-1",
    index_dataset="",
    val_split=0.0,
    activation=ActivationRule.NEVER,
    soup=2,
    config=CONFIG,
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How it trains."""

    threads: int
    dropout: float
    spec: FineTuneSpec

    def base(self) -> Clip:
        clip = tiny_clip()
        if self.dropout:
            dropout = nn.Dropout(self.dropout)
            clip.model.ln_final = nn.Sequential(clip.model.ln_final, dropout)
        return clip


PLANS = {
    "chunks": Plan(threads=1, dropout=0.1, spec=SPEC),
    "parts": Plan(
        threads=2,
        dropout=0.0,
        spec=replace(SPEC, config=replace(CONFIG, epochs=200, batch_size=12, chunk_size=12)),
    ),
    "process": Plan(
        threads=1,
        dropout=0.1,
        spec=replace(SPEC, config=replace(CONFIG, epochs=30), isolation=Isolation.PROCESS),
    ),
}
"""In chunks with dropout, on a thread and in a process, and in parts of all rows, a core each."""


class Mortal(Shelf):
    """Its process dies a little after so many forward passes of the model that is trained."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__({"base": plan.base()})
        self.passes = 0
        self.delay_s = 0.0
        self._folder = folder
        self._in_parts = False
        """Whether threads of parts ran some of them."""
        self._lock = threading.Lock()

    def aim(self, chance: random.Random) -> None:
        """Chooses when."""
        self.passes, self.delay_s = chance.randint(1, 30), chance.uniform(0, 0.03)

    def load(self, version_id: str, *, device: str) -> object:
        loaded = super().load(version_id, device=device)
        loaded.model.visual.register_forward_hook(self._count)
        return loaded

    def save_trained(self, model: nn.Module, *, base: str, source: str) -> VersionManifest:
        digest, weights = hashlib.sha256(), model.state_dict()
        for name in sorted(weights):
            digest.update(name.encode() + weights[name].numpy().tobytes())
        told = {"digest": digest.hexdigest(), "in_parts": self._in_parts}
        (self._folder / MADE).write_text(json.dumps(told))
        return types.SimpleNamespace(id="new")  # type: ignore[return-value]  # only its id is read

    def _count(self, *_: object) -> None:
        with self._lock:
            self._in_parts |= threading.current_thread().name.startswith("hotclip-train-part")
            self.passes -= 1
            if self.passes == 0:
                threading.Timer(self.delay_s, die, (self._folder / KILLS,)).start()


def die(count: Path) -> None:
    """Kills this process; the file grows by a byte."""
    with count.open("ab") as file:
        file.write(b"x")
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(folder: Path, kills: int, chance: random.Random) -> None:
    """Kills the server a little after so many processes of its died."""
    while deaths(folder) < kills:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.5))
    die(folder / "servers")


def deaths(folder: Path) -> int:
    """How many there were."""
    count = folder / KILLS
    return count.stat().st_size if count.exists() else 0


class Forked:
    """What `child_work` uses of `subprocess.Popen`, of a process that this one forks.

    There is no time for 20 new interpreters. The thread of the job may fork: nothing else computes
    in the server, and the child uses no file but those that it is given.
    """

    def __init__(self, arguments: list[str], *, pass_fds: tuple[int, ...], **_: object) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setpgid(0, 0)
                before = 3
                for descriptor in (*sorted(pass_fds), os.sysconf("SC_OPEN_MAX")):
                    os.closerange(before, descriptor)
                    before = descriptor + 1
                sys.argv = arguments[2:]
                child.main()
                os._exit(0)
            except BaseException:  # noqa: BLE001 - what it was is printed, and it ends
                traceback.print_exc()
                os._exit(1)
        self.returncode: int | None = None

    def wait(self, timeout: float = math.inf) -> int:
        ends = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > ends:
                raise subprocess.TimeoutExpired("a fork", timeout)
            else:
                time.sleep(0.002)
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def use_forks(plan: Plan, folder: Path, seed: int, kills: int) -> None:
    """From now on this process trains in forks of itself, of which so many die."""

    def versions(_: Path) -> Mortal:  # in a fork
        shelf = Mortal(plan, folder)
        torch.set_num_threads(plan.threads)
        if deaths(folder) < kills:
            shelf.aim(random.Random(f"{seed} {deaths(folder)}"))
        return shelf

    child.VersionStore = versions  # type: ignore[assignment,misc]
    child.DatasetFolders = lambda _: Sets()  # type: ignore[assignment,misc]
    child_work.subprocess = types.SimpleNamespace(  # type: ignore[assignment]
        Popen=Forked, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )
    child_work.LIVES = 1000
    # What others leave over may be little where tests run side by side.
    child_work.threads_of = lambda pid: []  # type: ignore[attr-defined]


async def live(folder: Path, shelf: Mortal, spec: FineTuneSpec) -> dict[str, object]:
    """One life of the server; how the job ended, if it did."""
    database = open_database(folder)
    place = Workplace(
        versions=shelf,
        datasets=Sets(),
        folders=folder / "states",
        every_s=0.0,
        roots=Roots(versions=folder, datasets=folder),
        waiting=SharedFlag(),
    )
    runner = JobRunner(
        database,
        [FineTuneHandler(place, Desk())],
        folders=JobFolders(folder / "states"),
        resume=True,
    )
    await runner.start()
    known = await runner.list(limit=1)
    if not known:
        await runner.submit(NewJob(kind=JobKind.FINE_TUNE, name=NAME, spec=spec.to_json()))
    elif known[0].state is JobState.INTERRUPTED:  # too often to go on by itself
        await runner.resume(NAME)
    events = await all_events(runner, NAME)
    record = await runner.get(NAME)
    await runner.stop()
    resumed = [event.resumed for event in events if event.HasField("resumed")]
    return {
        "state": record.state.value,
        "error": record.error and record.error.message,
        **(json.loads((folder / MADE).read_text()) if (folder / MADE).exists() else {}),
        "seqs": [event.seq for event in events] == list(range(1, len(events) + 1)),
        "from_steps": [event.from_step for event in resumed],
        "attempts": [event.attempt for event in resumed],
        "left": [path.name for path in (folder / "states").iterdir()],
    }


def one_life(plan: Plan, folder: Path, seed: int, life: int, kills: int) -> bool:
    """In a process of its own; whether it was killed.

    Args:
        life: Its number.
        kills: Of the process that trains, in all lives.
    """
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(plan.threads)
        shelf, chance = Mortal(plan, folder), random.Random(f"{seed} {life}")
        if plan.spec.isolation is Isolation.PROCESS:
            use_forks(plan, folder, seed, kills)
            if kills and life < SERVERS:
                after = (2 * life + 1) * kills // (2 * SERVERS)
                threading.Thread(
                    target=die_after, args=(folder, after, chance), daemon=True
                ).start()
        elif deaths(folder) < kills:
            shelf.aim(chance)
        (folder / "end.json").write_text(json.dumps(asyncio.run(live(folder, shelf, plan.spec))))
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError("a life ended badly")
    return False


def main() -> None:
    folder, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    plan = PLANS[sys.argv[4]]
    began = time.monotonic()
    found: dict[str, object] = {}
    for name, count in (("plain", 0), ("killed", kills)):
        (folder / name).mkdir()
        lives = 0
        while one_life(plan, folder / name, seed, lives, count):
            lives += 1
        found[name] = json.loads((folder / name / "end.json").read_text())
    found["kills"], found["servers"] = deaths(folder / "killed"), lives
    found["seconds"] = time.monotonic() - began
    print(json.dumps(found))


if __name__ == "__main__":
    main()
