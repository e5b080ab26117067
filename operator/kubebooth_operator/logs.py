"""Structured logs: one line per record, as JSON or text; libraries' records look the same."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_MOST_MESSAGE = 4096


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MOST_MESSAGE],
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`time LEVEL message key=value …` for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, but for a traceback."""
        message = record.getMessage()[:_MOST_MESSAGE].replace("\n", "\\n")
        fields = "".join(
            f" {key}={json.dumps(v, default=str)}" for key, v in _fields(record).items()
        )
        line = f"{_time(record)} {record.levelname:7} {message}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else {}


def configure(*, form: str, level: str, stream: TextIO | None = None) -> None:
    """Send the records of this process and its libraries through one handler.

    `form` is `json` or `text`, `level` a name as in `Settings.log_level`. Raises `ValueError`.
    """
    if form not in {"json", "text"}:
        raise ValueError(f"KUBEBOOTH_LOG_FORMAT={form!r} must be json or text")
    if level not in {"debug", "info", "warning", "error"}:
        raise ValueError(f"KUBEBOOTH_LOG_LEVEL={level!r} must be debug, info, warning or error")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Their debug lines tell of every request; they help only those who work on them.
    for name in ("asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(max(root.level, logging.INFO))
    # kopf says of every event that it was handed on; what comes of it is told by our own lines.
    for name in ("kopf.objects", "kopf.activities"):
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """`extra` of a log call: `logger.info("…", extra=fields(key=…))`."""
    return {"fields": values}
