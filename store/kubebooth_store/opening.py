"""From an address to a store; the one place that knows which kinds of store there are."""

from __future__ import annotations

import os
from pathlib import Path

from kubebooth_store.errors import Refused
from kubebooth_store.folder import FolderStore
from kubebooth_store.keys import split_file, split_s3
from kubebooth_store.patience import Patience
from kubebooth_store.s3 import S3Store
from kubebooth_store.verbs import Store
from kubebooth_store.wire import Keys, Wire

TIMEOUT_S = 120.0
_PARALLEL = 4
_AWS = "https://s3.amazonaws.com"


def open_store(
    uri: str,
    *,
    endpoint: str | None = None,
    region: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    session_token: str | None = None,
    ca_file: str | None = None,
    timeout_s: float = TIMEOUT_S,
    parallel: int = _PARALLEL,
) -> Store:
    """Open `s3://bucket/prefix` or `file:///folder`; nothing is contacted yet.

    `timeout_s` is for how long one request is tried again, and after which silence it is given
    up; a file is many requests. `parallel` bounds requests at once.

    Raises `Refused` when an address is malformed.
    """
    if timeout_s <= 0 or parallel < 1:
        raise Refused("timeout_s must be positive and parallel at least 1")
    if uri.startswith("file://"):
        return FolderStore(Path(split_file(uri)), timeout_s=timeout_s)
    if not uri.startswith("s3://"):
        raise Refused(f"store {uri!r}: write s3://bucket/prefix or file:///folder")
    bucket, prefix = split_s3(uri)
    if bool(access_key) != bool(secret_key):
        raise Refused("give both access_key and secret_key, or neither for anonymous access")
    keys = Keys(access_key, secret_key, session_token) if access_key and secret_key else None
    wire = Wire(
        endpoint=endpoint or _AWS,
        bucket=bucket,
        region=region,
        keys=keys,
        patience=Patience(timeout_s),
        connections=parallel + 1,
        ca_file=ca_file,
    )
    return S3Store(wire, prefix=prefix, parallel=parallel)


def open_store_from_env(
    uri: str,
    endpoint: str | None = None,
    region: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Store:
    """Open a store with the credentials of the environment.

    Reads AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_CA_BUNDLE, and
    AWS_REGION when no region is given.
    """
    environment = os.environ
    return open_store(
        uri,
        endpoint=endpoint,
        region=region or environment.get("AWS_REGION") or None,
        access_key=environment.get("AWS_ACCESS_KEY_ID"),
        secret_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        session_token=environment.get("AWS_SESSION_TOKEN") or None,
        ca_file=environment.get("AWS_CA_BUNDLE") or None,
        timeout_s=timeout_s,
    )
