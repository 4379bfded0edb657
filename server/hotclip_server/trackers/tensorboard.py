"""TensorBoard: event files, which `tensorboard --logdir` shows."""

from __future__ import annotations

from collections.abc import Mapping

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

from hotclip_server.trackers.protocol import Outcome, TrackedRun, TrackerSettings


class TensorBoard:
    """Implements `Tracker`; one folder a job."""

    def __init__(self, run: TrackedRun, settings: TrackerSettings) -> None:
        folder = settings.folder / "tensorboard" / run.folder_name
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(folder))
        rows = "".join(f"\n| {name} | {value} |" for name, value in run.settings.items())
        self._text("settings", f"| name | value |\n|---|---|{rows}")
        if run.description:
            self._text("description", run.description)
        self._writer.flush()

    def metrics(self, values: Mapping[str, float], *, step: int, time: float) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step, time)

    def rewind(self, step: int) -> bool:
        """See `Tracker`: readers leave out what came before such a mark at its step or later."""
        mark = SessionLog(status=SessionLog.START)
        # torch writes such a mark at the begin of a file alone.
        writer = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
        writer.add_event(Event(step=step + 1, session_log=mark))
        return True

    def close(self, outcome: Outcome) -> None:
        """See `Tracker`."""
        self._writer.close()

    def _text(self, tag: str, text: str) -> None:
        self._writer.add_text(tag, text)
