"""The command line's s3:// addresses: opened as sources, published as targets."""

from __future__ import annotations

import argparse
import os

from kubebooth_api.digests import digest_json
from kubebooth_store import Store, StoreError, open_store_from_env
from kubebooth_store.keys import split_s3

from kubebooth_trainer.convert.door import Opened, Plan
from kubebooth_trainer.convert.meter import Meter, Shown
from kubebooth_trainer.convert.showing import plan_json
from kubebooth_trainer.convert.stored.sources import open_stored, promises_of
from kubebooth_trainer.convert.stored.targets import publish_plan
from kubebooth_trainer.convert.writing.targets import Wish
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.worker import storage_fault


def open_at(address: str, options: argparse.Namespace) -> Opened:
    """Open a model at an s3:// address. Raises `WorkerError`."""
    try:
        store, key = _store(address, options)
        return open_stored(store, key, weights=options.weights).opened
    except StoreError as error:
        raise storage_fault(error) from error


def publish_at(
    options: argparse.Namespace, plan: Plan, opened: Opened, wish: Wish, shown: Shown
) -> str:
    """Publish a plan at an s3:// address, with a manifest; gives the address.

    Published content never changes: another model at the same address is refused. Raises
    `WorkerError`.
    """
    try:
        store, key = _store(options.target, options)
        checks = (*opened.checks, *promises_of(plan)) if wish.read_back else opened.checks
        publish_plan(
            plan,
            store,
            key,
            wish,
            checks=checks,
            metadata={"plan": digest_json(plan_json(plan)), "format": options.to},
            tell=Meter(shown, "Convert", plan, wish, checks),
        )
        return store.uri_of(key)
    except StoreError as error:
        raise storage_fault(error) from error


def _store(address: str, options: argparse.Namespace) -> tuple[Store, str]:
    bucket, key = split_s3(address)
    if not key:
        raise ConfigurationError(f"{address}: name a model below the bucket")
    endpoint = options.endpoint or os.environ.get("AWS_ENDPOINT_URL") or None
    return open_store_from_env(f"s3://{bucket}", endpoint, options.region), key
