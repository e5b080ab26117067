"""Our Jobs on the real Job controller: accepted under the restricted profile, failed, replaced and
deleted as the plan relies on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.artifacts import Artifact
from kubebooth_api.runs import SessionIdentity
from kubebooth_api.v1alpha1.conversion import ModelConversionSpec
from kubebooth_api.v1alpha1.session import (
    DatasetStatus,
    DreamboothSessionSpec,
    DreamboothSessionStatus,
)
from kubebooth_cluster.testing import RealCluster, eventually, found
from kubebooth_operator.conversion import asked as conversions
from kubebooth_operator.conversion.asked import Models
from kubebooth_operator.differences import lacks
from kubebooth_operator.doors import Observed
from kubebooth_operator.jobs import children, readings
from kubebooth_operator.jobs.sources import Asker, fetch
from kubebooth_operator.jobs.work import resolve_place
from kubebooth_operator.session import asked, exports
from kubebooth_operator.settings import Settings

ROOT = Path(__file__).parents[3]
SETTINGS = Settings(store_endpoint="http://store:8333", store_bucket="kubebooth")
SPEC = {
    "baseModel": {"variant": "sd15", "source": {"store": {"key": "models/shapes"}}},
    "concepts": [{"name": "dog", "token": "sks", "className": "dog"}],
    "runtime": {
        "resources": {"cpu": "100m", "memory": "256Mi", "gpu": 1, "scratch": "64Mi"},
        "terminationGracePeriodSeconds": 30,
    },
}
CONVERSION = {
    "source": {
        "huggingFace": {
            "repo": "someone/model",
            "revision": "0123456789abcdef0123456789abcdef01234567",
            "tokenSecretRef": {"name": "hub", "key": "token"},
        }
    },
    "target": {"format": "Ckpt"},
}
SLOW_TO_STOP = """
import signal, sys, time
def stop(*_):
    time.sleep(3)
    sys.exit(68)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


class Stage:
    """A session in a namespace that enforces the restricted profile."""

    def __init__(self, cluster: RealCluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        created = cluster.api.post(
            f"/apis/kubebooth.io/v1alpha1/namespaces/{namespace}/dreamboothsessions",
            {
                "apiVersion": "kubebooth.io/v1alpha1",
                "kind": "DreamboothSession",
                "metadata": {"name": "rex", "namespace": namespace},
                "spec": SPEC,
            },
        )
        self.uid: str = created["metadata"]["uid"]

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """ConfigMap and Job of a stage."""
        spec = DreamboothSessionSpec.parse(SPEC)
        place = resolve_place(spec.storage, SETTINGS)
        identity = SessionIdentity(namespace=self.namespace, name="rex", uid=self.uid)
        digest = "sha256:" + "1" * 64
        lora = ModelConversionSpec.parse(CONVERSION)
        asker = Asker("ModelConversion", identity, place, SETTINGS, None, lora.storage)
        (wanted,) = conversions.wanted(lora)
        source = Artifact(name="m", uri="s3://kubebooth/m", digest=digest, size=1)
        works = {
            "fetch": fetch(wanted, asker),
            "convert": conversions.convert(lora, identity, place, Models(source)),
            "prepare": asked.prepare(spec, identity, place),
            "train": asked.train(
                spec,
                identity,
                place,
                dataset=DatasetStatus(digest=digest, uri="s3://kubebooth/d", images=6),
                base_model=Artifact(name="m", uri="s3://kubebooth/m", digest=digest, size=1),
            ),
            "purge": asked.purge(spec, identity, place),
        }
        work = works[stage]
        return [
            children.config_map(work),
            children.job(work, "sha256:0", spec.runtime, place, SETTINGS),
        ]

    def start(self, script: str) -> str:
        """Run a train Job whose worker is this Python script; gives the Job's name."""
        config_map, job = copy.deepcopy(self.manifests("train"))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        container["command"] = ["python3", "-c", script]
        container["env"] = [e for e in container["env"] if "secretKeyRef" not in str(e)]
        self.cluster.api.post(self._path("", "configmaps"), config_map)
        self.cluster.api.post(self._path("batch", "jobs"), job)
        name: str = job["metadata"]["name"]
        return name

    def job(self, name: str) -> Any:
        """The Job, or None."""
        return found(self.cluster.api, f"{self._path('batch', 'jobs')}/{name}")

    def ended(self, name: str) -> dict[str, Any]:
        """The condition with which the Job ended."""

        def condition() -> dict[str, Any] | None:
            conditions = self.job(name)["status"].get("conditions") or []
            ends = [c for c in conditions if c["type"] in {"Complete", "Failed"}]
            return ends[0] if ends else None

        return eventually(condition, what=f"an end of {name}")

    def listening_pod(self) -> str:
        """The name of the pod whose worker is ready for a signal."""

        def ready() -> str | None:
            for pod in self.pods():
                name: str = pod["metadata"]["name"]
                if pod["status"].get("phase") == "Running":
                    return name if "ready" in self.cluster.logs(self.namespace, name) else None
            return None

        return eventually(ready, what="a worker that listens") or ""

    def pods(self) -> list[Any]:
        """The pods of the namespace."""
        return self.cluster.pods(self.namespace)

    def ours(self, plural: str) -> str:
        """The collection of one of our kinds."""
        return f"/apis/kubebooth.io/v1alpha1/namespaces/{self.namespace}/{plural}"

    def _path(self, group: str, plural: str) -> str:
        root = f"/apis/{group}/v1" if group else "/api/v1"
        return f"{root}/namespaces/{self.namespace}/{plural}"


@pytest.fixture
def stage(cluster: RealCluster, cluster_namespace: str) -> Stage:
    """A session in a namespace that enforces the restricted profile."""
    cluster.apply_crds([ROOT / "crds"])
    profile = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", cluster_namespace, profile)
    return Stage(cluster, cluster_namespace)


@pytest.mark.parametrize("name", ["fetch", "prepare", "train", "convert", "purge"])
def test_every_child_is_accepted_without_a_warning(stage: Stage, name: str) -> None:
    for manifest in stage.manifests(name):
        plural = {"ConfigMap": "configmaps", "Job": "jobs"}[manifest["kind"]]
        group = "batch" if plural == "jobs" else ""
        answer = stage.cluster.api.post(f"{stage._path(group, plural)}?dryRun=All", manifest)
        assert answer["metadata"]["name"] == manifest["metadata"]["name"]


def test_the_conversion_of_an_export_is_accepted_and_reads_back_as_what_was_asked(
    stage: Stage,
) -> None:
    outputs = [{"name": "diffusers"}, {"name": "file", "format": "Safetensors"}]
    spec = DreamboothSessionSpec.parse({**SPEC, "outputs": outputs})
    parent = found(stage.cluster.api, f"{stage.ours('dreamboothsessions')}/rex")
    uri = "s3://kubebooth/sessions/a/rex/runs/b/artifacts/diffusers/c"
    model = Artifact(name="diffusers", uri=uri, digest="sha256:" + "1" * 64, size=1)
    made = exports.manifests(
        readings.read(Observed(parent=parent), DreamboothSessionStatus),
        spec,
        resolve_place(spec.storage, SETTINGS),
        DreamboothSessionStatus(artifacts=(model,)),
    )["file"]
    path = f"{stage.ours('modelconversions')}/{made['metadata']['name']}"
    stage.cluster.api.apply(path, made)
    there = found(stage.cluster.api, path)
    assert not lacks(made, there)
    assert ModelConversionSpec.parse(there["spec"]) == ModelConversionSpec.parse(made["spec"])


@pytest.mark.parametrize("code", [64, 65])
def test_a_final_exit_code_fails_the_job_at_once(stage: Stage, code: int) -> None:
    name = stage.start(f"raise SystemExit({code})")
    assert stage.ended(name)["reason"] == "PodFailurePolicy"
    assert len(stage.pods()) == 1


def test_any_other_failure_ends_the_job_after_one_pod(stage: Stage) -> None:
    name = stage.start("raise SystemExit(66)")
    ended = stage.ended(name)
    assert ended["type"] == "Failed"
    assert ended["reason"] == "BackoffLimitExceeded"
    assert len(stage.pods()) == 1


def test_a_preempted_pod_is_replaced_without_counting(stage: Stage) -> None:
    name = stage.start(SLOW_TO_STOP)
    first = stage.listening_pod()
    stage.cluster.kubectl("-n", stage.namespace, "delete", "pod", first, "--wait=false")
    eventually(
        lambda: any(
            p["metadata"]["name"] != first and p["status"].get("phase") == "Running"
            for p in stage.pods()
        ),
        what="another pod",
    )
    assert "conditions" not in stage.job(name)["status"]


def test_a_job_deleted_in_the_foreground_keeps_its_name_until_its_pod_has_ended(
    stage: Stage,
) -> None:
    name = stage.start(SLOW_TO_STOP)
    stage.listening_pod()
    stage.cluster.kubectl(
        "-n", stage.namespace, "delete", "job", name, "--cascade=foreground", "--wait=false"
    )
    held = 0
    while stage.job(name) is not None:
        held += any(pod["metadata"].get("deletionTimestamp") for pod in stage.pods())
    assert held > 0
    assert stage.pods() == []
