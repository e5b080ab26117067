"""Deletes what a session or a conversion left in the store, and never what a user uploaded."""

from __future__ import annotations

import logging

from kubebooth_api import layout
from kubebooth_api.runs import PurgeRun
from kubebooth_store import Store

from kubebooth_trainer.errors import ConfigurationError, Preempted
from kubebooth_trainer.reporter import Reporter

_LOG = logging.getLogger(__name__)
_OURS = ("runs", "datasets", "class-images", "cache")


def purge(run: PurgeRun, *, store: Store, reporter: Reporter) -> str:
    """Delete runs, snapshots, class images and caches of one session, or all of one conversion.

    A second time finds nothing.

    Gives one sentence for people. Raises `ConfigurationError`, `Preempted` and store errors.
    """
    if run.owner == "Conversion":
        return _purge_conversion(run, store, reporter)
    try:
        session = layout.session(run.session.namespace, run.session.name)
    except ValueError as error:
        raise ConfigurationError(f"session: {error}") from error
    gone = 0
    for index, folder in enumerate(_OURS):
        if reporter.stop.is_set():
            raise Preempted("stopped while purging; the next try goes on")
        removed = store.delete_prefix(f"{session}/{folder}")
        gone += removed
        _LOG.info("folder purged", extra={"folder": folder, "files": removed})
        reporter.advance("Purge", index + 1, len(_OURS), percentage=100 * (index + 1) // len(_OURS))
    return f"{gone} files deleted; uploads are kept at {store.uri_of(f'{session}/uploads')}"


def _purge_conversion(run: PurgeRun, store: Store, reporter: Reporter) -> str:
    try:
        home = layout.conversion(run.session.namespace, run.session.name)
    except ValueError as error:
        raise ConfigurationError(f"session: {error}") from error
    gone = store.delete_prefix(home)
    reporter.advance("Purge", 1, 1, percentage=100)
    return f"{gone} files of the conversion deleted; its source is kept"
