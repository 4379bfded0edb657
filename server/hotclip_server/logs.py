"""Log lines, for people or for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, severity, logger, message, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Serialises one record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "severity": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Time, severity, message; control characters of a message are escaped, so that a caller's
    text can't forge a line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides
        """Escapes, then formats."""
        record.message = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode()
            for char in record.message
        )
        return super().formatMessage(record)


class AnswersToNobody(logging.Filter):
    """Drops what gRPC logs, with a traceback, of an answer to a call that has ended: its caller's
    deadline has passed, or it went away, and gRPC had not told the handler yet."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is kept."""
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or kind.__name__ != "ExecuteBatchError"


def configure_logging(level: str, log_format: str) -> None:
    """Sends the records of hotclip at `level`, and warnings of libraries, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("hotclip_server").setLevel(level.upper())
    of_grpc = logging.getLogger("grpc._cython.cygrpc")
    of_grpc.filters[:] = [AnswersToNobody()]
