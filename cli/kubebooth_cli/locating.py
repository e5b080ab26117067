"""Where a session's store is and with which keys: flags, then the session, then the installation.

It gives a plain description; reaching the address is the business of `reaching`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubebooth_cli.cluster import Cluster, NotFound
from kubebooth_cli.errors import CliError

CONFIG_MAP = "kubebooth-store"
_LABELS = "app.kubernetes.io/part-of=kubebooth,app.kubernetes.io/component=store"


@dataclass(frozen=True)
class Flags:
    """What the command line or its environment says of the store; absent is looked up."""

    uri: str | None = None
    """`s3://bucket/prefix` or `file:///folder`."""
    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None

    @property
    def complete(self) -> bool:
        """Whether no cluster is needed to find the store."""
        uri = self.uri or ""
        keys = bool(self.access_key and self.secret_key and self.endpoint)
        return uri.startswith("file://") or (uri.startswith("s3://") and keys)


@dataclass(frozen=True)
class Place:
    """A store: its address and the keys that open it."""

    uri: str
    endpoint: str | None
    region: str | None
    access_key: str | None
    secret_key: str | None
    given: bool = False
    """Whether a person named the endpoint, so that it is taken as it is."""


def locate(cluster: Cluster | None, spec: Mapping[str, Any] | None, flags: Flags) -> Place:
    """The store of a session. `spec` is the session's, if there is one already.

    Raises `CliError` that names the missing field, ConfigMap or Secret.
    """
    if flags.complete or cluster is None:
        uri = flags.uri or ""
        return Place(
            uri, flags.endpoint, flags.region, flags.access_key, flags.secret_key, given=True
        )
    asked = (spec or {}).get("storage") or {}
    installed = _installation(cluster, needed=flags.uri is None and "bucket" not in asked)
    own = asked.get("endpoint")
    endpoint = own or installed.get("publicEndpoint") or installed.get("endpoint")
    bucket = asked.get("bucket") or installed.get("bucket")
    prefix = asked.get("prefix", installed.get("prefix", ""))
    reference = (asked.get("credentialsSecretRef") or {}).get("name")
    secret = reference or installed.get("secret") or CONFIG_MAP
    access_key, secret_key = _keys_of(cluster, secret, flags)
    return Place(
        uri=flags.uri or f"s3://{bucket}/{prefix}".rstrip("/"),
        endpoint=flags.endpoint or endpoint or None,
        region=flags.region or asked.get("region") or installed.get("region") or None,
        access_key=access_key,
        secret_key=secret_key,
        given=flags.endpoint is not None,
    )


def _installation(cluster: Cluster, *, needed: bool) -> dict[str, str]:
    """The data of the chart's ConfigMap: the one of the usual name, else the only labelled one."""
    try:
        return dict(cluster.get(cluster.path("configmaps", CONFIG_MAP)).get("data") or {})
    except NotFound:
        found = cluster.get(cluster.path("configmaps"), labelSelector=_LABELS)["items"]
    if len(found) == 1:
        return dict(found[0].get("data") or {})
    if not needed:
        return {}
    if found:
        names = ", ".join(str(item["metadata"]["name"]) for item in found)
        raise CliError(
            f"namespace {cluster.namespace} belongs to several installations ({names})",
            "name the store with --store-uri and --endpoint, or in the session's spec.storage",
        )
    raise CliError(
        f"namespace {cluster.namespace} has no ConfigMap {CONFIG_MAP}, which tells where the"
        " store is",
        f"helm upgrade … --set 'sessionNamespaces={{{cluster.namespace}}}', or give"
        " --store-uri and --endpoint",
    )


def _keys_of(cluster: Cluster, secret: str, flags: Flags) -> tuple[str, str]:
    """Keys of the Secret. Those of the environment serve where a person names another store, or
    may not read the Secret; else they are most likely meant for some other service."""
    own = (flags.access_key, flags.secret_key)
    if flags.uri and own[0] and own[1]:
        return own[0], own[1]
    try:
        return _keys(cluster, secret)
    except CliError:
        if own[0] and own[1]:
            return own[0], own[1]
        raise


def _keys(cluster: Cluster, name: str) -> tuple[str, str]:
    try:
        data = cluster.get(cluster.path("secrets", name)).get("data") or {}
    except NotFound as error:
        raise CliError(
            f"namespace {cluster.namespace} has no Secret {name} with the store's keys",
            f"helm upgrade … --set 'sessionNamespaces={{{cluster.namespace}}}', or set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from error
    try:
        access_key, secret_key = (
            base64.b64decode(data[key], validate=True).decode()
            for key in ("accessKey", "secretKey")
        )
    except (KeyError, binascii.Error, UnicodeDecodeError) as error:
        raise CliError(
            f"Secret {name} in namespace {cluster.namespace} lacks a readable accessKey or"
            " secretKey",
            "give it both keys, as text",
        ) from error
    return access_key, secret_key
