"""Opens the store of a session for one command and turns its errors into words for people."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from kubebooth_store import Denied, NotFound, Store, StoreError, Unavailable, open_store

from kubebooth_cli.cluster import Cluster, Where
from kubebooth_cli.errors import CliError
from kubebooth_cli.locating import Flags, locate
from kubebooth_cli.reaching import reachable

_TIMEOUT_S = 60.0


@contextlib.contextmanager
def opened(
    cluster: Cluster | None, spec: Mapping[str, Any] | None, flags: Flags, where: Where
) -> Iterator[Store]:
    """The store while the block runs. Raises `CliError` for every fault of the store in it."""
    place = locate(cluster, spec, flags)
    with reachable(place, cluster, where) as endpoint, told(endpoint or place.uri):
        store = open_store(
            place.uri,
            endpoint=endpoint,
            region=place.region,
            access_key=place.access_key,
            secret_key=place.secret_key,
            timeout_s=_TIMEOUT_S,
        )
        yield store


@contextlib.contextmanager
def told(address: str) -> Iterator[None]:
    """Turn a `StoreError` inside into a `CliError`."""
    try:
        yield
    except Unavailable as error:
        raise CliError(
            f"the store {address} is away or failing: {error}",
            "is it running? Try again, or name another address with --endpoint",
        ) from error
    except Denied as error:
        raise CliError(
            f"the store {address} refuses: {error}",
            "check the keys in the Secret, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from error
    except NotFound as error:
        raise CliError(
            f"not in the store: {error}", "is this the right store (--store-uri)?"
        ) from error
    except StoreError as error:
        raise CliError(str(error)) from error
