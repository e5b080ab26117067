"""What a worker is asked, for whom and where: the terms that every kind of object shares.

Knows the contract and the installation's settings; knows nothing of Jobs or of what happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubebooth_api.digests import digest_json
from kubebooth_api.door import Door
from kubebooth_api.runs import AnyRun, StoreLocation
from kubebooth_api.v1alpha1.common import SecretKeyRef, Storage
from kubebooth_api.v1alpha1.runtime import Runtime

from kubebooth_operator.doors import Stalled
from kubebooth_operator.settings import Settings

FETCH, PREPARE, TRAIN, CONVERT, PURGE = "Fetch", "Prepare", "Train", "Convert", "Purge"
SESSION, CONVERSION = "DreamboothSession", "ModelConversion"
SMALL: Mapping[str, str] = {"cpu": "1", "memory": "2Gi"}
"""What a worker without an accelerator gets."""


@dataclass(frozen=True)
class Place:
    """Where the object's data is kept and with whose keys."""

    store: StoreLocation
    secret: str
    """Name of the credentials Secret."""
    chosen_endpoint: str
    """Endpoint that the object itself names. The installation's own may move to another address
    without making anybody's work new."""

    @property
    def identity(self) -> list[str]:
        """What distinguishes one store from another."""
        return [self.store.uri, self.chosen_endpoint]


@dataclass(frozen=True)
class Token:
    """A key of a Secret that a worker finds in its environment."""

    ref: SecretKeyRef
    path: str
    """Where the object names it, such as `spec.trackers.wandb.apiKeySecretRef`."""


@dataclass(frozen=True)
class Work:
    """One worker's task."""

    stage: str
    run: AnyRun
    target: str
    """Digest of what is reached when the task is done."""
    digest: str
    """Digest of what a Job for this task is made from."""
    owner: str = SESSION
    """Kind of the object that asks."""
    amounts: Mapping[str, str] = field(default_factory=lambda: SMALL)
    """Resources of the pod; requests equal limits."""
    tokens: tuple[Token, ...] = ()
    """Secrets that the worker needs besides the store's."""


def resolve_place(asked: Storage, settings: Settings) -> Place:
    """The object's store over the installation's. Raises `Stalled` when there is none."""
    bucket = asked.bucket or settings.store_bucket
    endpoint = asked.endpoint or settings.store_endpoint
    missing = [n for n, value in (("endpoint", endpoint), ("bucket", bucket)) if not value]
    if missing:
        fields = " and ".join(f"spec.storage.{name}" for name in missing)
        raise Stalled(
            "StorageNotConfigured",
            f"{fields}: not set, and the installation has no default; set it here, or install"
            " the chart with store.bundled.enabled or store.external",
        )
    prefix = (settings.store_prefix if asked.prefix is None else asked.prefix).strip("/")
    secret = asked.credentials_secret_ref
    return Place(
        store=StoreLocation(
            uri=f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}",
            endpoint=endpoint,
            region=asked.region or settings.store_region,
        ),
        secret=secret.name if secret else settings.store_secret,
        chosen_endpoint=asked.endpoint or "",
    )


def digest(run: AnyRun, target: str, *, runtime: Runtime | None, storage: Storage) -> str:
    """What the user decides about a Job. The image and the addresses of the default store and of
    the hub are the installation's: changing them must not stop what runs."""
    asked = told(run)
    for of_the_installation in ("endpoint", "region"):
        asked["store"].pop(of_the_installation, None)
    for of_the_installation in ("hub", "allowPrivate"):
        asked.pop(of_the_installation, None)
    return digest_json(
        {
            "stage": run.kind,
            "run": asked,
            "target": target,
            "runtime": told(runtime) if runtime is not None else {},
            "storage": told(storage),
        }
    )


def told(model: Door) -> dict[str, Any]:
    """What differs from the defaults, for digests: a field that a later version adds must neither
    stop what runs nor reopen what is complete. A default that changes has to be written in here."""
    differs: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return differs
