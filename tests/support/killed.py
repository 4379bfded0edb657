"""`python -m support.killed <folder> <seed> <kills> <plan>`: one fine-tune, killed again and again.

Imports everything once and forks a process for each life of the server, which kills itself at a
moment that the seed chooses. Prints a JSON object for the test.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
import types
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from support.jobs import all_events, open_database
from torch import nn

from hotclip_server.jobs.folders import JobFolders
from hotclip_server.jobs.records import JobKind, NewJob
from hotclip_server.jobs.runner import JobRunner
from hotclip_server.jobs.specs import ActivationRule, FineTuneSpec
from hotclip_server.jobs.states import JobState
from hotclip_server.training.clip import Clip
from hotclip_server.training.config import CROPS, TrainConfig
from hotclip_server.training.finetune_job import FineTuneHandler
from hotclip_server.training.finetune_work import Workplace

# Some libraries install a package of this name, and it would be found first.
tests = types.ModuleType("tests")
tests.__path__ = [str(Path(__file__).parents[1])]
sys.modules["tests"] = tests

from tests.unit.training.test_finetune_job import Desk, Sets, Shelf  # noqa: E402
from tests.unit.training.tiny import tiny_clip  # noqa: E402

NAME = "victim"
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
}
"""In chunks with dropout, and in parts of all rows, a core each."""


class Mortal(Shelf):
    """Its process dies a little after so many forward passes of the model that is trained."""

    passes = 0
    delay_s = 0.0
    in_parts = False
    """Whether threads of parts ran some of them."""
    _lock = threading.Lock()

    def load(self, version_id: str, *, device: str) -> object:
        loaded = super().load(version_id, device=device)
        loaded.model.visual.register_forward_hook(self._count)
        return loaded

    def _count(self, *_: object) -> None:
        with self._lock:
            self.in_parts |= threading.current_thread().name.startswith("hotclip-train-part")
            self.passes -= 1
            if self.passes == 0:
                threading.Timer(self.delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()


async def live(folder: Path, shelf: Mortal, spec: FineTuneSpec) -> dict[str, object]:
    """One life of the server; how the job ended, if it did."""
    database = open_database(folder)
    place = Workplace(versions=shelf, datasets=Sets(), folders=folder / "states", every_s=0.0)
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
    weights = shelf.saved[-1].model.state_dict()
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    resumed = [event.resumed for event in events if event.HasField("resumed")]
    return {
        "state": record.state.value,
        "digest": digest.hexdigest(),
        "seqs": [event.seq for event in events] == list(range(1, len(events) + 1)),
        "from_steps": [event.from_step for event in resumed],
        "attempts": [event.attempt for event in resumed],
        "in_parts": shelf.in_parts,
        "left": [path.name for path in (folder / "states").iterdir()],
    }


def one_life(plan: Plan, folder: Path, passes: int, delay_s: float) -> bool:
    """In a process of its own; whether it was killed."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(plan.threads)
        shelf = Mortal({"base": plan.base()})
        shelf.passes, shelf.delay_s = passes, delay_s
        (folder / "end.json").write_text(json.dumps(asyncio.run(live(folder, shelf, plan.spec))))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError("a life ended badly")
    return False


def main() -> None:
    folder, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    plan = PLANS[sys.argv[4]]
    began = time.monotonic()
    chance = random.Random(seed)
    found: dict[str, object] = {}
    for name in ("plain", "killed"):
        (folder / name).mkdir()
    one_life(plan, folder / "plain", 0, 0.0)
    done = 0
    while done < kills and not (folder / "killed" / "end.json").exists():
        passes, delay_s = chance.randint(1, 30), chance.uniform(0, 0.03)
        done += one_life(plan, folder / "killed", passes, delay_s)
    if not (folder / "killed" / "end.json").exists():
        one_life(plan, folder / "killed", 0, 0.0)
    for name in ("plain", "killed"):
        found[name] = json.loads((folder / name / "end.json").read_text())
    found["kills"], found["seconds"] = done, time.monotonic() - began
    print(json.dumps(found))


if __name__ == "__main__":
    main()
