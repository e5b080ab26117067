"""Log lines on stdout: one JSON object a line for machines, plain text for a person's terminal."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was passed as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonLines(logging.Formatter):
    """`{"ts", "level", "logger", "msg", ...fields}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever is in the record."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class PlainLines(logging.Formatter):
    """`message  name=value …`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a trace where there is one."""
        fields = "".join(
            f"  {name}={str(value).splitlines()[0][:300] if str(value) else ''}"
            for name, value in fields_of(record).items()
        )
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{level}{record.getMessage()}{fields}{trace}"


def set_up(*, style: str, stream: TextIO | None = None) -> None:
    """Log to stdout; `style` is `json`, `text` or `auto` (text on a terminal)."""
    out = stream or sys.stdout
    text = style == "text" or (style == "auto" and out.isatty())
    handler = logging.StreamHandler(out)
    handler.setFormatter(PlainLines() if text else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Libraries that talk about every request are heard from warnings up.
    for chatty in ("urllib3", "httpx", "httpcore", "PIL", "filelock", "fsspec"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
