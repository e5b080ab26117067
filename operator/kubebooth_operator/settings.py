"""Settings of the operator, read from the environment once, in `__main__`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Settings:
    """What the installation decides; every field is one `KUBEBOOTH_*` variable."""

    namespace: str = "kubebooth"
    """Namespace of the operator itself: leader Lease and events (`POD_NAMESPACE`)."""
    identity: str = "kubebooth-operator"
    """Identity of this replica in the Lease (`POD_NAME`)."""
    listen: str = "0.0.0.0"  # noqa: S104
    """Address of health and metrics (`POD_IP`)."""
    port: int = 8081
    """Port of `/healthz`, `/readyz` and `/metrics` (`KUBEBOOTH_PORT`)."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces to serve; empty is the whole cluster (`KUBEBOOTH_WATCH_NAMESPACES`)."""
    trainer_image: str = "ghcr.io/kubebooth/trainer:0.1.0"
    """Image of the workers (`KUBEBOOTH_TRAINER_IMAGE`)."""
    image_pull_policy: str = "IfNotPresent"
    """Pull policy of worker pods (`KUBEBOOTH_IMAGE_PULL_POLICY`)."""
    store_endpoint: str | None = None
    """Default S3 endpoint (`KUBEBOOTH_STORE_ENDPOINT`)."""
    store_bucket: str | None = None
    """Default bucket (`KUBEBOOTH_STORE_BUCKET`)."""
    store_prefix: str = ""
    """Default prefix (`KUBEBOOTH_STORE_PREFIX`)."""
    store_region: str | None = None
    """Default region (`KUBEBOOTH_STORE_REGION`)."""
    store_secret: str = "kubebooth-store"
    """Default credentials Secret, in the session's namespace (`KUBEBOOTH_STORE_SECRET`)."""
    hub_endpoint: str = "https://huggingface.co"
    """Address of the hub that models come from; a mirror is another (`KUBEBOOTH_HUB_ENDPOINT`)."""
    hub_allow_private: bool = False
    """Whether sources may stand at private addresses (`KUBEBOOTH_HUB_ALLOW_PRIVATE`)."""
    hub_token_secret: str = ""
    """Secret in the session's namespace with the token for models of the catalogue; empty is none
    (`KUBEBOOTH_HUB_TOKEN_SECRET`)."""
    hub_token_key: str = "token"
    """Key inside that Secret (`KUBEBOOTH_HUB_TOKEN_KEY`)."""
    workers: int = 4
    """Objects of one kind reconciled at once (`KUBEBOOTH_WORKERS`)."""
    resync_s: float = 600.0
    """Seconds between full-list comparisons (`KUBEBOOTH_RESYNC_SECONDS`)."""
    progress_interval_s: float = 5.0
    """Seconds between progress readings (`KUBEBOOTH_PROGRESS_SECONDS`)."""
    lease_duration_s: float = 15.0
    """A leader unheard of for so long is replaced (`KUBEBOOTH_LEASE_SECONDS`)."""
    leader_elect: bool = True
    """Whether a Lease is needed to act (`KUBEBOOTH_LEADER_ELECT`)."""
    log_format: str = "json"
    """`json` or `text` (`KUBEBOOTH_LOG_FORMAT`)."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error` (`KUBEBOOTH_LOG_LEVEL`)."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read every variable. Raises `ValueError` that names the variable and the cure."""
        get = environment.get
        default = cls()
        namespaces = get("KUBEBOOTH_WATCH_NAMESPACES", "")
        return cls(
            namespace=get("POD_NAMESPACE", default.namespace),
            identity=get("POD_NAME", default.identity),
            listen=get("POD_IP", default.listen),
            port=int(_number(environment, "KUBEBOOTH_PORT", default.port)),
            watch_namespaces=tuple(n.strip() for n in namespaces.split(",") if n.strip()),
            trainer_image=get("KUBEBOOTH_TRAINER_IMAGE", default.trainer_image),
            image_pull_policy=get("KUBEBOOTH_IMAGE_PULL_POLICY", default.image_pull_policy),
            store_endpoint=get("KUBEBOOTH_STORE_ENDPOINT") or None,
            store_bucket=get("KUBEBOOTH_STORE_BUCKET") or None,
            store_prefix=get("KUBEBOOTH_STORE_PREFIX", default.store_prefix),
            store_region=get("KUBEBOOTH_STORE_REGION") or None,
            store_secret=get("KUBEBOOTH_STORE_SECRET", default.store_secret),
            hub_endpoint=_address(environment, "KUBEBOOTH_HUB_ENDPOINT", default.hub_endpoint),
            hub_allow_private=_flag(
                environment, "KUBEBOOTH_HUB_ALLOW_PRIVATE", default.hub_allow_private
            ),
            hub_token_secret=get("KUBEBOOTH_HUB_TOKEN_SECRET", default.hub_token_secret),
            hub_token_key=get("KUBEBOOTH_HUB_TOKEN_KEY") or default.hub_token_key,
            workers=int(_number(environment, "KUBEBOOTH_WORKERS", default.workers)),
            resync_s=_number(environment, "KUBEBOOTH_RESYNC_SECONDS", default.resync_s),
            progress_interval_s=_number(
                environment, "KUBEBOOTH_PROGRESS_SECONDS", default.progress_interval_s
            ),
            lease_duration_s=_number(
                environment, "KUBEBOOTH_LEASE_SECONDS", default.lease_duration_s
            ),
            leader_elect=_flag(environment, "KUBEBOOTH_LEADER_ELECT", default.leader_elect),
            log_format=get("KUBEBOOTH_LOG_FORMAT", default.log_format),
            log_level=get("KUBEBOOTH_LOG_LEVEL", default.log_level),
        )


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number; set one or unset it") from None
    if number <= 0:
        raise ValueError(f"{name}={text!r} must be above 0")
    return number


def _address(environment: Mapping[str, str], name: str, default: str) -> str:
    text = (environment.get(name) or default).rstrip("/")
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"{name}={text!r} must begin with http:// or https://")
    return text


def _flag(environment: Mapping[str, str], name: str, default: bool) -> bool:
    text = environment.get(name, "").lower()
    if not text:
        return default
    if text not in {"true", "false"}:
        raise ValueError(f"{name}={text!r} must be true or false")
    return text == "true"
