"""The chart renders what its values ask for, in every combination that matters."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from kubebooth_operator.settings import Settings

from charts import generate
from tests.chart.helm import (
    CHART,
    ROOT,
    Object,
    environment,
    helm,
    of_kind,
    one,
    pod_of,
    refusal,
    render,
)

EXTERNAL = (
    "store.bundled.enabled=false",
    "store.external.endpoint=https://s3.example.org",
    "store.external.bucket=models",
    "store.external.prefix=team/a",
    "store.external.region=eu-1",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "standby": ("operator.replicas=2",),
    "namespaces": ("watchNamespaces={a,b}",),
    "external": (*EXTERNAL, "store.external.accessKey=k", "store.external.secretKey=s"),
    "external-secret": (*EXTERNAL, "store.external.existingSecret=mine"),
    "bundled-secret": ("store.bundled.existingSecret=mine",),
    "nothing-kept": (
        "store.bundled.persistence.enabled=false",
        "crds.keep=false",
        "networkPolicy.enabled=false",
        "metrics.service.enabled=false",
        "serviceAccount.create=false",
        "rbac.create=false",
    ),
    "everything": (
        "operator.replicas=3",
        "sessionNamespaces={default,booth,team-a}",
        "metrics.serviceMonitor.enabled=true",
        "metrics.serviceMonitor.labels.release=prometheus",
        "imagePullSecrets[0].name=pull",
        "operator.extraEnv[0].name=HTTPS_PROXY",
        "operator.extraEnv[0].value=http://proxy:3128",
        "operator.podAnnotations.a=b",
        "operator.podLabels.team=x",
        "operator.priorityClassName=high",
        "operator.nodeSelector.disk=ssd",
        "operator.tolerations[0].operator=Exists",
        "store.bundled.tolerations[0].operator=Exists",
        "store.bundled.nodeSelector.disk=ssd",
        "store.bundled.podAnnotations.a=b",
        "store.bundled.persistence.storageClass=fast",
        "store.bundled.service.type=NodePort",
        "serviceAccount.annotations.a=b",
        "store.publicEndpoint=https://store.example.org",
        "fullnameOverride=booth",
    ),
}


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Object]]:
    return {name: render(*values) for name, values in VARIANTS.items()}


def test_the_chart_passes_the_strict_linter() -> None:
    linted = helm("lint", "--strict", str(CHART))
    assert linted.returncode == 0, linted.stdout


def test_generated_parts_of_the_chart_are_fresh() -> None:
    assert generate.main(["--check"]) == 0


def test_a_template_brace_in_a_description_survives_as_text() -> None:
    crd = "kind: X\nmetadata:\n  name: x\nspec:\n  text: say {{token}} here\n"
    assert 'say {{ "{{" }}token}} here' in generate.crd_template(crd)


def test_a_crd_with_metadata_that_would_be_lost_is_refused() -> None:
    crd = "kind: X\nmetadata:\n  name: x\n  annotations:\n    a: b\nspec:\n  y: 1\n"
    with pytest.raises(ValueError, match="annotations"):
        generate.crd_template(crd)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_is_named_once_labelled_and_has_a_namespace(
    rendered: dict[str, list[Object]], variant: str
) -> None:
    objects = rendered[variant]
    keys = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(keys) == len(set(keys))
    wide = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    for found in objects:
        assert ("namespace" in found["metadata"]) is (found["kind"] not in wide), found["kind"]
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/part-of"] == "kubebooth"
        assert labels["helm.sh/chart"] == "kubebooth-0.1.0"


def test_the_hubs_values_reach_the_operators_settings() -> None:
    values = (
        "hub.endpoint=https://mirror.example.com/",
        "hub.allowPrivateAddresses=true",
        "hub.tokenSecret.name=company-hub",
        "hub.tokenSecret.key=hf",
    )
    objects = render(*values)
    (deployment,) = [o for o in objects if o["kind"] == "Deployment"]
    found = Settings.from_environment(environment(pod_of(deployment)["containers"][0]))
    assert found.hub_endpoint == "https://mirror.example.com"
    assert found.hub_allow_private
    assert (found.hub_token_secret, found.hub_token_key) == ("company-hub", "hf")
    assert "hub" in refusal("hub.endpoint=ftp://mirror.example.com")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_container_is_restricted_and_bounded(
    rendered: dict[str, list[Object]], variant: str
) -> None:
    workloads = [o for o in rendered[variant] if o["kind"] in {"Deployment", "StatefulSet"}]
    assert workloads
    for workload in workloads:
        pod = pod_of(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert "cpu" in container["resources"]["requests"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_selectors_match_the_pods_and_hold_no_version(
    rendered: dict[str, list[Object]], variant: str
) -> None:
    objects = rendered[variant]
    pods = {
        o["metadata"]["name"]: o["spec"]["template"]["metadata"]["labels"]
        for o in objects
        if o["kind"] in {"Deployment", "StatefulSet"}
    }
    for labels in pods.values():
        assert "app.kubernetes.io/version" not in labels
        assert "helm.sh/chart" not in labels
    for service in of_kind(objects, "Service"):
        selected = [
            n for n, labels in pods.items() if service["spec"]["selector"].items() <= labels.items()
        ]
        assert len(selected) == 1, service["metadata"]["name"]


class _Recorder(dict[str, str]):
    """Remembers which variables were asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def test_the_operator_is_given_every_variable_that_it_reads_and_no_other(
    rendered: dict[str, list[Object]],
) -> None:
    recorder = _Recorder({})
    Settings.from_environment(recorder)
    operator = one(rendered["defaults"], "Deployment", "kubebooth-operator")
    given = {entry["name"] for entry in pod_of(operator)["containers"][0]["env"]}
    assert given == recorder.asked


def test_the_operator_reads_the_defaults_as_they_are_meant(
    rendered: dict[str, list[Object]],
) -> None:
    operator = one(rendered["defaults"], "Deployment", "kubebooth-operator")
    read = Settings.from_environment(environment(pod_of(operator)["containers"][0]))
    plain = Settings()
    assert read == Settings(
        trainer_image="ghcr.io/kubebooth/trainer:0.1.0",
        store_endpoint="http://kubebooth-store.booth.svc:8333",
        store_bucket="kubebooth",
    )
    assert read.resync_s == plain.resync_s


def test_the_operator_reads_an_external_store_and_namespaces() -> None:
    objects = render(
        *EXTERNAL,
        "store.external.existingSecret=mine",
        "watchNamespaces={a,b}",
        "trainer.image.digest=sha256:" + "0" * 64,
        "operator.log.level=debug",
        "operator.leaderElection.enabled=false",
    )
    operator = one(objects, "Deployment", "kubebooth-operator")
    assert Settings.from_environment(environment(pod_of(operator)["containers"][0])) == Settings(
        watch_namespaces=("a", "b"),
        trainer_image="ghcr.io/kubebooth/trainer@sha256:" + "0" * 64,
        store_endpoint="https://s3.example.org",
        store_bucket="models",
        store_prefix="team/a",
        store_region="eu-1",
        store_secret="mine",
        log_level="debug",
        leader_elect=False,
    )


def test_a_standby_brings_a_disruption_budget_and_another_node(
    rendered: dict[str, list[Object]],
) -> None:
    assert not of_kind(rendered["defaults"], "PodDisruptionBudget")
    assert one(rendered["standby"], "PodDisruptionBudget", "kubebooth-operator")
    operator = one(rendered["standby"], "Deployment", "kubebooth-operator")
    assert "podAntiAffinity" in pod_of(operator)["affinity"]


def test_watched_namespaces_get_roles_and_the_cluster_none(
    rendered: dict[str, list[Object]],
) -> None:
    objects = rendered["namespaces"]
    assert not of_kind(objects, "ClusterRole")
    assert not of_kind(objects, "ClusterRoleBinding")
    roles = {r["metadata"]["namespace"]: r["rules"] for r in of_kind(objects, "Role")}
    assert set(roles) == {"a", "b", "booth"}
    whole = one(rendered["defaults"], "ClusterRole", "kubebooth-operator")
    assert roles["a"] == roles["b"] == whole["rules"]


def test_sessions_find_the_same_generated_keys_in_every_namespace(
    rendered: dict[str, list[Object]],
) -> None:
    secrets = of_kind(rendered["everything"], "Secret")
    read = [
        {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
        for secret in secrets
    ]
    spread = {
        s["metadata"]["namespace"] for s in secrets if s["metadata"]["name"] == "kubebooth-store"
    }
    assert spread == {"default", "booth", "team-a"}
    assert len({(keys["accessKey"], keys["secretKey"]) for keys in read}) == 1
    assert len(read[0]["secretKey"]) == 40
    (server,) = [keys for keys in read if "s3.json" in keys]
    (identity,) = json.loads(server["s3.json"])["identities"]
    assert identity["credentials"] == [
        {"accessKey": server["accessKey"], "secretKey": server["secretKey"]}
    ]
    assert all(action.endswith(":kubebooth") for action in identity["actions"])


def test_a_secret_of_the_users_is_named_and_never_made(
    rendered: dict[str, list[Object]],
) -> None:
    for variant in ("external-secret", "bundled-secret"):
        assert not of_kind(rendered[variant], "Secret")
        told = one(rendered[variant], "ConfigMap", "kubebooth-store")["data"]
        assert told["secret"] == "mine"


def test_the_config_map_tells_where_the_store_is(rendered: dict[str, list[Object]]) -> None:
    assert one(rendered["external"], "ConfigMap", "kubebooth-store")["data"] == {
        "endpoint": "https://s3.example.org",
        "bucket": "models",
        "prefix": "team/a",
        "region": "eu-1",
        "secret": "kubebooth-store",
        "publicEndpoint": "",
    }


def test_an_external_store_leaves_no_trace_of_the_bundled_one(
    rendered: dict[str, list[Object]],
) -> None:
    objects = rendered["external"]
    assert not of_kind(objects, "StatefulSet")
    assert [s["metadata"]["name"] for s in of_kind(objects, "Service")] == ["kubebooth-metrics"]


def test_a_store_without_persistence_lives_in_the_pod(rendered: dict[str, list[Object]]) -> None:
    kept = one(rendered["defaults"], "StatefulSet", "kubebooth-store")
    assert kept["spec"]["volumeClaimTemplates"][0]["spec"]["resources"] == {
        "requests": {"storage": "50Gi"}
    }
    lost = one(rendered["nothing-kept"], "StatefulSet", "kubebooth-store")
    assert "volumeClaimTemplates" not in lost["spec"]
    volumes = {volume["name"]: volume for volume in pod_of(lost)["volumes"]}
    assert "emptyDir" in volumes["data"]


def test_the_store_listens_on_the_pod_address_with_s3_only(
    rendered: dict[str, list[Object]],
) -> None:
    store = one(rendered["defaults"], "StatefulSet", "kubebooth-store")
    filer, s3 = pod_of(store)["containers"]
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3=false"} <= set(filer["command"])
    assert "-ip.bind=$(POD_IP)" in s3["command"]
    assert "ports" not in filer


def test_crds_are_kept_unless_told_otherwise(rendered: dict[str, list[Object]]) -> None:
    names = sorted(path.stem + ".kubebooth.io" for path in (ROOT / "crds").glob("*.yaml"))
    kept = of_kind(rendered["defaults"], "CustomResourceDefinition")
    assert sorted(crd["metadata"]["name"] for crd in kept) == names
    for crd in kept:
        assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    for crd in of_kind(rendered["nothing-kept"], "CustomResourceDefinition"):
        assert "annotations" not in crd["metadata"]
    assert not of_kind(render("crds.install=false"), "CustomResourceDefinition")


def test_the_crds_of_the_chart_say_what_the_generated_ones_say(
    rendered: dict[str, list[Object]],
) -> None:
    for crd in of_kind(rendered["defaults"], "CustomResourceDefinition"):
        plural = crd["metadata"]["name"].partition(".")[0]
        text = (ROOT / f"crds/{plural}.yaml").read_text()
        source = yaml.load(text, Loader=yaml.CSafeLoader)
        assert crd["spec"] == source["spec"]


def test_a_release_name_of_any_length_gives_valid_names() -> None:
    for found in render(release="a" * 53):
        name = found["metadata"]["name"]
        longest = 52 if found["kind"] in {"Deployment", "StatefulSet"} else 63
        assert len(name) <= longest, name


def test_extra_settings_reach_the_pods(rendered: dict[str, list[Object]]) -> None:
    objects = rendered["everything"]
    pod = pod_of(one(objects, "Deployment", "booth-operator"))
    assert environment(pod["containers"][0])["HTTPS_PROXY"] == "http://proxy:3128"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["priorityClassName"] == "high"
    monitor = one(objects, "ServiceMonitor", "booth-operator")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    claim = one(objects, "StatefulSet", "booth-store")["spec"]["volumeClaimTemplates"][0]
    assert claim["spec"]["storageClassName"] == "fast"
