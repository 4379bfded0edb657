"""What was measured of engines, kept in one file over restarts.

    {"format": 1,
     "rankings": {"<shape>|<tower>|<wish>|<machine>": [{"engine", "precision", "figures"}, ...]},
     "verdicts": {"<version>|<tower>|<engine>/<precision>|<machine>": true}}

A machine is named with the versions of its libraries, so what another one measured is not taken.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotclip_server.encoding.engines.choices import EngineWish
from hotclip_server.encoding.engines.protocol import EngineChoice, EngineFigures
from hotclip_server.encoding.protocol import Tower
from hotclip_server.errors import ResourceExhausted
from hotclip_server.storage.atomic import write_atomically

_log = logging.getLogger(__name__)

FORMAT = 1
MOST_ENTRIES = 2000
"""Of each kind; the oldest go first."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """An engine that runs a tower, and how fast."""

    choice: EngineChoice
    figures: EngineFigures | None


class EngineMemory:
    """Rankings by architecture and verdicts by version; thread-safe, writes block.

    Args:
        path: Made with the first thing that is remembered; damaged or unreadable, it counts as
            empty, and what can't be written is known until the process ends.
        machine: Device, processor and versions of libraries.
    """

    def __init__(self, path: Path, machine: str) -> None:
        self._path, self._machine = path, machine
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        """Taken before `_lock`, which nobody holds while the disk works."""
        self._content: dict[str, dict[str, Any]] | None = None

    def ranking(self, shape: str, tower: Tower, wish: EngineWish) -> list[Ranked] | None:
        """Engines of an architecture, fastest first; None: never measured."""
        with self._lock:
            entries = self._read()["rankings"].get(self._key(shape, tower.value, str(wish)))
        return None if entries is None else [_from_json(entry) for entry in entries]

    def remember_ranking(
        self, shape: str, tower: Tower, wish: EngineWish, ranking: Sequence[Ranked]
    ) -> None:
        """Keeps a ranking."""
        self._write("rankings", self._key(shape, tower.value, str(wish)), _to_json(ranking))

    def verdict(self, version: str, tower: Tower, choice: EngineChoice) -> bool | None:
        """Whether an engine gave a version's reference embeddings; None: never compared."""
        with self._lock:
            found: bool | None = self._read()["verdicts"].get(
                self._key(version, tower.value, str(choice))
            )
        return found

    def remember_verdict(
        self, version: str, tower: Tower, choice: EngineChoice, *, passed: bool
    ) -> None:
        """Keeps a verdict."""
        self._write("verdicts", self._key(version, tower.value, str(choice)), passed)

    def _key(self, *parts: str) -> str:
        return "|".join((*parts, self._machine))

    def _write(self, kind: str, key: str, value: object) -> None:
        with self._lock:
            content = self._read()
            entries = content[kind]
            entries.pop(key, None)
            entries[key] = value
            for oldest in list(entries)[: max(0, len(entries) - MOST_ENTRIES)]:
                del entries[oldest]
        # Each text holds all that was known when its turn came, so the last one is complete.
        with self._writing:
            with self._lock:
                text = json.dumps({"format": FORMAT, **content}, indent=1) + "\n"
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, text.encode())
            except (OSError, ResourceExhausted) as error:
                _log.warning("%s can't be written: %s", self._path.name, error)

    def _read(self) -> dict[str, dict[str, Any]]:
        if self._content is None:
            self._content = {"rankings": {}, "verdicts": {}}
            try:
                if self._path.is_file():
                    self._content |= self._parse(self._path.read_bytes())
            except OSError as error:
                _log.warning("%s can't be read and starts anew: %s", self._path.name, error)
        return self._content

    def _parse(self, data: bytes) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(data)
            if content["format"] != FORMAT:
                return {}
            rankings, verdicts = dict(content["rankings"]), dict(content["verdicts"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("%s is damaged and starts anew: %r", self._path.name, error)
            return {}
        for key, entries in list(rankings.items()):
            try:
                for entry in entries:
                    _from_json(entry)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                _log.warning("%s: %s is damaged and dropped: %r", self._path.name, key, error)
                del rankings[key]
        return {
            "rankings": rankings,
            "verdicts": {key: found for key, found in verdicts.items() if type(found) is bool},
        }


def _to_json(ranking: Sequence[Ranked]) -> list[dict[str, Any]]:
    return [
        {
            "engine": ranked.choice.engine,
            "precision": ranked.choice.precision,
            "figures": None if ranked.figures is None else asdict(ranked.figures),
        }
        for ranked in ranking
    ]


def _from_json(entry: dict[str, Any]) -> Ranked:
    figures = entry["figures"]
    return Ranked(
        choice=EngineChoice(entry["engine"], entry["precision"]),
        figures=None if figures is None else _figures_from_json(figures),
    )


def _figures_from_json(figures: dict[str, Any]) -> EngineFigures:
    points = tuple((int(n), int(length), float(s)) for n, length, s in figures["seconds"])
    if not points or any(
        n < 1 or length < 1 or s <= 0 or not math.isfinite(s) for n, length, s in points
    ):
        raise ValueError("seconds are not of batches that ran")
    best, padded = figures["best_batch"], figures["padded"]
    if type(best) is not int or best < 1 or type(padded) is not bool:
        raise ValueError("best_batch is not a number of items, or padded not a truth value")
    if best not in (n for n, length, _ in points if length == points[0][1]):
        raise ValueError("best_batch was not measured")
    return EngineFigures(best_batch=best, seconds=points, padded=padded)
