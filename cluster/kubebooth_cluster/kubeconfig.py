"""Kubeconfig files with a bearer token, written and read back; it must not know who uses them."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.files import write_whole


@dataclass(frozen=True)
class Credentials:
    """How to reach an API server: its URL, its authority (PEM) and a bearer token."""

    server: str
    authority_pem: str
    token: str


def write(path: Path, credentials: Credentials, *, name: str, user: str) -> None:
    """Write a kubeconfig (JSON is YAML) that only its owner can read."""
    authority = base64.b64encode(credentials.authority_pem.encode()).decode()
    cluster = {"server": credentials.server, "certificate-authority-data": authority}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": user, "user": {"token": credentials.token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
        "current-context": name,
    }
    write_whole(path, json.dumps(document, indent=2) + "\n", mode=0o600)


def read(path: Path) -> Credentials:
    """The credentials of a kubeconfig written here. Raises ClusterError on any other."""
    try:
        document = json.loads(path.read_text())
        cluster = document["clusters"][0]["cluster"]
        return Credentials(
            server=cluster["server"],
            authority_pem=base64.b64decode(cluster["certificate-authority-data"]).decode(),
            token=document["users"][0]["user"]["token"],
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ClusterError(f"{path}: no kubeconfig of this tool ({error}); run `up`") from error
