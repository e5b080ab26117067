"""Answers that were paid for, kept in the store by what was asked, so that nothing is paid twice.

What comes back from the store is checked as if a stranger had written it.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import asdict, dataclass
from typing import Any

from kubebooth_api.digests import canonical_json, short
from kubebooth_store import NotFound, Refused, Store

from kubebooth_trainer.vision.spending import Usage

VERSION = 1
SPENT = "spent.json"
_MAX_BYTES = 1 << 20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """One answer."""

    text: str
    probabilities: dict[str, float] | None
    model: str
    """Model as the server named it."""
    usage: Usage


class Answers:
    """Kept answers below one prefix of a store."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._lock = threading.Lock()

    def get(self, identity: str) -> Kept | None:
        """The answer to a question, or None when it was never paid for."""
        value = self._read(f"{short(identity)}.json")
        try:
            if value is None or value["identity"] != identity or value["version"] != VERSION:
                return None
            told = value["probabilities"]
            return Kept(
                text=str(value["text"]),
                probabilities=None
                if told is None
                else {str(name): min(1.0, max(0.0, float(share))) for name, share in told.items()},
                model=str(value["model"])[:256],
                usage=_usage(value["usage"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _LOG.warning("a kept answer is unreadable and asked again", extra={"why": str(error)})
            return None

    def put(self, identity: str, kept: Kept) -> None:
        """Keep an answer. Raises `StoreError`."""
        value = {"version": VERSION, "identity": identity, **asdict(kept)}
        self._store.write(f"{self._prefix}/{short(identity)}.json", canonical_json(value))

    def spent(self) -> Usage:
        """What was paid in earlier lives, failed tries among it."""
        value = self._read(SPENT)
        try:
            return _usage(value) if value is not None else Usage()
        except (KeyError, TypeError, ValueError):
            return Usage()

    def note_spent(self, usage: Usage) -> None:
        """Keep the sum of what was paid."""
        with self._lock:
            self._store.write(f"{self._prefix}/{SPENT}", canonical_json(asdict(usage)))

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            data = self._store.read(f"{self._prefix}/{name}", max_bytes=_MAX_BYTES)
            value = json.loads(data)
        except NotFound:
            return None
        except (Refused, ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


def _usage(value: dict[str, Any]) -> Usage:
    counts = [int(value[name]) for name in ("calls", "prompt_tokens", "completion_tokens")]
    if min(counts) < 0:
        raise ValueError("a count below 0")
    return Usage(*counts)
