"""Suspend, resume and retry: one small patch each, and a sentence about what follows."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime

from kubebooth_cli.cluster import CONVERSIONS, SESSIONS, Cluster
from kubebooth_cli.errors import CliError
from kubebooth_cli.session import Session, read

RETRY_ANNOTATION = "kubebooth.io/retry"
_TAKEN_UP_S = 15.0


def suspend(cluster: Cluster, session: Session) -> str:
    """Ask for a pause."""
    return _set_suspend(cluster, session, wanted=True)


def resume(cluster: Cluster, session: Session) -> str:
    """End a pause."""
    return _set_suspend(cluster, session, wanted=False)


def retry(cluster: Cluster, session: Session) -> str:
    """Let a failed session try again, and wait a moment until the operator has taken it up."""
    if not session.holds("Failed"):
        cure = f"kubebooth status {session.name} tells what it waits for"
        if session.ended:
            cure = "to train again from the start, change spec.rerun"
        if session.holds("Stalled"):
            cure = f"its spec must change first: {session.message}"
        raise CliError(f"{session.name} has not failed, so there is nothing to retry", cure)
    token = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    path = _path(cluster, session)
    cluster.merge(path, {"metadata": {"annotations": {RETRY_ANNOTATION: token}}})
    deadline = time.monotonic() + _TAKEN_UP_S
    while time.monotonic() < deadline:
        if not read(cluster.session(session.name)).holds("Failed"):
            return f"{session.name} tries again; kubebooth watch {session.name} follows it"
        time.sleep(0.2)
    return (
        f"{session.name} is asked to try again, but the operator has not taken it up yet; is it"
        " running?"
    )


def _path(cluster: Cluster, session: Session) -> str:
    return cluster.path(CONVERSIONS if session.is_conversion else SESSIONS, session.own_name)


def _set_suspend(cluster: Cluster, session: Session, *, wanted: bool) -> str:
    spec = session.raw.get("spec") or {}
    if bool(spec.get("suspend")) is wanted:
        return f"{session.name} {'is suspended already' if wanted else 'is not suspended'}"
    cluster.merge(_path(cluster, session), {"spec": {"suspend": wanted}})
    if wanted:
        return (
            f"{session.name} is being suspended: its worker saves a checkpoint and ends;"
            f" kubebooth resume {session.name} goes on"
        )
    return f"{session.name} goes on; kubebooth watch {session.name} follows it"
