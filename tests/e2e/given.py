"""A cluster that somebody else runs, named by KUBEBOOTH_KUBECONFIG, reached by kubectl alone."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

from kubebooth_cluster import binaries
from kubebooth_cluster.api import ApiError

KUBECONFIG = os.environ.get("KUBEBOOTH_KUBECONFIG", "")
"""The given cluster; empty runs the tests on a one-machine cluster of their own."""
HELM_SET = os.environ.get("KUBEBOOTH_HELM_SET", "").split()
"""Chart values such as `trainer.image.repository=…`, for the images that the cluster can pull."""


class GivenCluster:
    """What the end-to-end tests need of a cluster, by any credentials that kubectl understands."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.api = KubectlApi(self)

    def kubectl(
        self, *words: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl."""
        return subprocess.run(
            [str(binaries.kubectl()), "--kubeconfig", str(self.kubeconfig), *words],
            input=stdin,
            capture_output=True,
            text=True,
            check=check,
            timeout=120,
        )

    def make_namespace(self, name: str) -> str:
        """Create a namespace with a unique end; the caller deletes it."""
        unique = f"{name}-{uuid.uuid4().hex[:6]}"
        self.kubectl("create", "namespace", unique)
        return unique


class KubectlApi:
    """JSON requests through kubectl, with the verbs of `kubebooth_cluster.api.Api`."""

    def __init__(self, cluster: GivenCluster) -> None:
        self._cluster = cluster

    def get(self, path: str) -> Any:
        """The object or list at a path. Raises `ApiError` 404 when there is none."""
        return json.loads(self._raw("get", "--raw", path))

    def post(self, path: str, body: Any) -> Any:
        """Create an object in the collection at a path."""
        return json.loads(self._raw("create", "--raw", path, "-f", "-", stdin=json.dumps(body)))

    def apply(self, path: str, body: Any) -> None:
        """Server-side apply of one object; its own names say where, so the path is not read."""
        del path
        self._raw("apply", "--server-side", "-f", "-", stdin=json.dumps(body))

    def _raw(self, *words: str, stdin: str | None = None) -> str:
        done = self._cluster.kubectl(*words, check=False, stdin=stdin)
        if done.returncode != 0:
            raise ApiError(404 if "(NotFound)" in done.stderr else 500, done.stderr.strip())
        return done.stdout
