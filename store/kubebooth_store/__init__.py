"""The session store: the same verbs on any S3 server and on a plain folder.

It knows keys, bytes and digests; it must not know sessions, training or Kubernetes.
"""

from kubebooth_store.errors import (
    Conflict,
    Corrupt,
    Denied,
    NotFound,
    Refused,
    StoreError,
    Unavailable,
    Unsupported,
)
from kubebooth_store.fetching import fetch
from kubebooth_store.opening import open_store, open_store_from_env
from kubebooth_store.pointers import move_pointer, read_pointer
from kubebooth_store.probing import Capabilities, probe
from kubebooth_store.publishing import publish, publish_files, publish_uploaded, read_manifest
from kubebooth_store.verbs import Entry, OnBytes, Store, Writer

__all__ = [
    "Capabilities",
    "Conflict",
    "Corrupt",
    "Denied",
    "Entry",
    "NotFound",
    "OnBytes",
    "Refused",
    "Store",
    "StoreError",
    "Unavailable",
    "Unsupported",
    "Writer",
    "fetch",
    "move_pointer",
    "open_store",
    "open_store_from_env",
    "probe",
    "publish",
    "publish_files",
    "publish_uploaded",
    "read_manifest",
    "read_pointer",
]
