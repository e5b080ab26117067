"""Names, labels and annotations of the children of our objects; knows no manifest and no state.

A Job's name says whose and which stage it is, never which try: the name is the lock that keeps two
workers of one stage from running at once (see `docs/decisions`, "one Job at a time").
"""

from __future__ import annotations

from kubebooth_api.digests import digest_json, short

from kubebooth_operator.resources import (
    GROUP,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    OWNER_LABELS,
    label_value,
)

STAGE_LABEL = f"{GROUP}/stage"
WORK_ANNOTATION = f"{GROUP}/work"
"""Digest of what the Job was made from; another one asks for another Job."""
TARGET_ANNOTATION = f"{GROUP}/target"
"""Digest of what the Job reaches when it completes."""
SERIES_ANNOTATION = f"{GROUP}/series"
"""Digest of the series of tries that the Job was started in; only its failures count there."""
RETRY_ANNOTATION = f"{GROUP}/retry"
"""On the object: a free token; a new one lets what failed be tried again."""
RECONCILE_ANNOTATION = f"{GROUP}/reconcile"
"""On the object: `disabled` leaves everything as it is."""

_LONGEST_STEM = 38


def stem(owner: str) -> str:
    """The beginning of all children's names: the owner's name without dots, cut to length.

    Together with stage and digest at most 57 characters, so that the five random ones of a pod's
    name still fit a host name.
    """
    return owner.replace(".", "-")[:_LONGEST_STEM].rstrip("-")


def job(owner: str, uid: str, stage: str) -> str:
    """Name of the one Job of a stage; the object's UID keeps a namesake's children apart."""
    return f"{stem(owner)}-{stage.lower()}-{short(digest_json(uid), 8)}"


def config_map(owner: str, stage: str, digest: str) -> str:
    """Name of the ConfigMap with a Run; its content decides the digest."""
    return f"{stem(owner)}-{stage.lower()}-{short(digest, 10)}"


def owner_label(kind: str, owner: str) -> dict[str, str]:
    """The label that names the parent."""
    return {OWNER_LABELS[kind]: label_value(owner)}


def labels(kind: str, owner: str, stage: str) -> dict[str, str]:
    """Labels of every child and pod of a stage."""
    return {
        "app.kubernetes.io/name": "kubebooth-trainer",
        MANAGED_BY_LABEL: MANAGED_BY,
        "app.kubernetes.io/component": stage.lower(),
        **owner_label(kind, owner),
        STAGE_LABEL: stage.lower(),
    }
