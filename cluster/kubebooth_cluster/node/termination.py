"""What a container said when it ended: its message file, its log, or why it never started."""

import re
from pathlib import Path

from kubebooth_cluster.node.settings import Object

# The kubelet's own limits.
_MESSAGE_BYTES = 4096
_LOG_BYTES = 2048
_LOG_LINES = 80

_START_ERROR = re.compile(r"^bwrap: (.+)$", re.MULTILINE)


def read_end(path: Path, *, size_bytes: int) -> str:
    """At most the last `size_bytes` bytes of a file, as text; "" when there is no file."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - size_bytes))
            return stream.read(size_bytes).decode(errors="replace")
    except OSError:
        return ""


def termination_message(spec: Object, message_file: Path, log: Path, code: int | None) -> str:
    """The message file, or by policy the end of the log of a container that failed."""
    message = read_end(message_file, size_bytes=_MESSAGE_BYTES)
    if message or code == 0:
        return message
    if spec.get("terminationMessagePolicy") != "FallbackToLogsOnError":
        return ""
    return "".join(read_end(log, size_bytes=_LOG_BYTES).splitlines(keepends=True)[-_LOG_LINES:])


def clean_start_error(log: Path) -> str:
    """Why the sandbox could not start its command, in a container runtime's words; "" if it did."""
    found = _START_ERROR.search(read_end(log, size_bytes=_LOG_BYTES))
    if found is None:
        return ""
    missing = re.fullmatch(r"execvp (.+): No such file or directory", found[1])
    if missing:
        return f'exec: "{missing[1]}": executable file not found in $PATH'
    return f"failed to create the sandbox: {found[1]}"
