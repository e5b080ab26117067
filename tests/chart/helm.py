"""Runs helm on the chart and reads what it renders."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml
from kubebooth_cluster import binaries

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/kubebooth"

Object = dict[str, Any]


def helm(*words: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm; KUBEBOOTH_HELM names another one than the pinned."""
    program = os.environ.get("KUBEBOOTH_HELM") or str(binaries.helm())
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig or "/nonexistent")}
    return subprocess.run(
        [program, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )


def take_over() -> list[str]:
    """Words that let a release own CRDs which somebody applied before; Helm 4 applies by server."""
    newer = helm("version", "--short").stdout.startswith("v4.")
    return ["--take-ownership", *(["--force-conflicts"] if newer else [])]


def settings(values: tuple[str, ...]) -> list[str]:
    """`--set` words for `key=value` texts."""
    return [word for value in values for word in ("--set", value)]


def render(*values: str, release: str = "kubebooth", namespace: str = "booth") -> list[Object]:
    """The objects that `helm template` gives for some `key=value` settings."""
    words = ["template", release, str(CHART), "--namespace", namespace, *settings(values)]
    rendered = helm(*words)
    assert rendered.returncode == 0, rendered.stderr
    # The C loader: the CRDs are long, and the Python one takes a second for them.
    loaded = yaml.load_all(rendered.stdout, Loader=yaml.CSafeLoader)
    return [document for document in loaded if document]


def refusal(*values: str) -> str:
    """What helm says of settings that must be refused."""
    rendered = helm("template", "kubebooth", str(CHART), *settings(values))
    assert rendered.returncode != 0, f"{values} should have been refused"
    return rendered.stderr


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """The objects of one kind."""
    return [document for document in objects if document["kind"] == kind]


def one(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of a kind and name."""
    found = [o for o in of_kind(objects, kind) if o["metadata"]["name"] == name]
    assert len(found) == 1, [o["metadata"]["name"] for o in of_kind(objects, kind)]
    return found[0]


def pod_of(workload: Object) -> Object:
    """The pod spec of a Deployment or StatefulSet."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def environment(container: Object) -> dict[str, str]:
    """Plain variables of a container; those from fields are left out."""
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
