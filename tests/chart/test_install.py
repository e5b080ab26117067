"""The chart installs on a real API server, upgrades, and gives the operator what it needs only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from kubebooth_cluster.testing import RealApi, eventually, found

from tests.chart.helm import CHART, ROOT, Object, render
from tests.chart.release import Release
from tests.chart.test_rendering import VARIANTS

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def test_an_upgrade_keeps_the_generated_credentials(release: Release) -> None:
    release.upgrade()
    server = release.secret(release.namespace, f"{release.name}-kubebooth-store-config")
    session = release.secret(release.sessions, "kubebooth-store")
    assert session["secretKey"] == server["secretKey"]

    release.upgrade("operator.replicas=2")

    assert release.secret(release.sessions, "kubebooth-store") == session
    assert release.secret(release.namespace, f"{release.name}-kubebooth-store-config") == server


def test_pods_are_admitted_where_only_restricted_ones_are(release: Release) -> None:
    api = release.plane.api
    api.merge(
        f"/api/v1/namespaces/{release.namespace}",
        {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
    )
    release.upgrade()

    def both() -> set[str]:
        pods = api.get(f"/api/v1/namespaces/{release.namespace}/pods")["items"]
        seen = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods}
        return seen if seen == {"operator", "store"} else set()

    assert eventually(both, what="a pod of the operator and one of the store")


def test_an_upgrade_upgrades_the_crds_and_an_uninstall_keeps_them(
    release: Release, tmp_path: Path
) -> None:
    api = release.plane.api
    crd = f"{CRDS}/webuiinstances.kubebooth.io"
    older = tmp_path / "kubebooth"
    shutil.copytree(CHART, older)
    template = older / "templates/crds/webuiinstances.yaml"
    template.write_text(template.read_text().replace("    - webui\n", "    - oldwebui\n"))
    release.upgrade(chart=older)
    assert api.get(crd)["spec"]["names"]["shortNames"] == ["oldwebui"]

    release.upgrade(chart=CHART)
    assert api.get(crd)["spec"]["names"]["shortNames"] == ["webui"]

    release.run("uninstall", release.name)
    assert found(api, crd) is not None


def test_the_notes_name_the_next_commands(release: Release) -> None:
    told = release.upgrade()
    for part in ("kubebooth upload", "kubebooth watch", f"-n {release.sessions}", "rollout status"):
        assert part in told


def test_two_releases_live_side_by_side(release: Release, control_plane: RealApi) -> None:
    release.upgrade()
    other = Release(control_plane, f"{release.name}b", release.namespace, release.sessions)
    other.upgrade("store.secretName=other-store")
    try:
        ours = release.secret(release.sessions, "kubebooth-store")
        assert other.secret(release.sessions, "other-store") != ours
    finally:
        other.run("uninstall", other.name)


OURS = ("dreamboothsessions", "modelconversions", "webuiinstances")
EXPORTS = "modelconversions"
"""A session owns one for each export; sessions and web UIs are made by people alone."""
CHILDREN = ("jobs.batch", "configmaps")
NEEDED = [
    *((verb, f"{kind}.kubebooth.io", "") for kind in OURS for verb in ("list", "watch", "patch")),
    *((verb, f"{EXPORTS}.kubebooth.io", "") for verb in ("create", "delete")),
    *(("patch", f"{kind}.kubebooth.io", "status") for kind in OURS),
    *(("update", f"{kind}.kubebooth.io", "finalizers") for kind in OURS),
    *(
        (verb, kind, "")
        for kind in CHILDREN
        for verb in ("get", "list", "watch", "create", "patch", "delete")
    ),
    *((verb, "pods", "") for verb in ("get", "list", "watch")),
    *((verb, "events", "") for verb in ("create", "patch")),
]
FORBIDDEN = [
    *((verb, "secrets", "") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    *(
        (verb, f"{kind}.kubebooth.io", "")
        for kind in OURS
        if kind != EXPORTS
        for verb in ("create", "delete")
    ),
    *((verb, "pods", "") for verb in ("create", "delete", "patch")),
    ("create", "pods", "exec"),
    ("get", "pods", "log"),
    ("create", "serviceaccounts", "token"),
    ("deletecollection", "jobs.batch", ""),
    ("get", "persistentvolumeclaims", ""),
    ("create", "rolebindings.rbac.authorization.k8s.io", ""),
    ("impersonate", "users", ""),
    ("get", "nodes", ""),
    ("patch", "customresourcedefinitions.apiextensions.k8s.io", ""),
]


def test_the_operator_may_do_what_it_must_and_nothing_else(release: Release) -> None:
    release.upgrade()
    for verb, resource, sub in NEEDED:
        assert release.may(verb, resource, subresource=sub), (verb, resource, sub)
    for verb, resource, sub in FORBIDDEN:
        assert not release.may(verb, resource, subresource=sub), (verb, resource, sub)
    for verb in ("get", "create", "update"):
        assert release.may(verb, "leases.coordination.k8s.io", namespace=release.namespace)
        assert not release.may(verb, "leases.coordination.k8s.io")


def test_with_watched_namespaces_the_operator_may_nothing_elsewhere(release: Release) -> None:
    release.upgrade(f"watchNamespaces={{{release.sessions}}}")
    for verb, resource, sub in NEEDED:
        assert release.may(verb, resource, subresource=sub), (verb, resource, sub)
        assert not release.may(verb, resource, subresource=sub, namespace="default")
        assert not release.may(verb, resource, subresource=sub, namespace="")


def test_the_api_server_accepts_every_variant(
    control_plane: RealApi, namespace: str, tmp_path: Path
) -> None:
    control_plane.apply_crds([ROOT / "crds"])
    items: list[Object] = []
    for values in VARIANTS.values():
        objects = render(*values)
        # A ServiceMonitor needs the Prometheus operator; CRDs are the same in every variant.
        skipped = {"ServiceMonitor", "CustomResourceDefinition"}
        for item in (o for o in objects if o["kind"] not in skipped):
            if "namespace" in item["metadata"]:
                item["metadata"]["namespace"] = namespace
            if item not in items:
                items.append(item)
    items += [o for o in render() if o["kind"] == "CustomResourceDefinition"]
    manifest = tmp_path / "rendered.json"
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    words = ["apply", "--server-side", "--dry-run=server", "--force-conflicts"]
    applied = control_plane.kubectl(*words, "--validate=strict", "-f", str(manifest), check=False)
    assert applied.returncode == 0, applied.stderr
    assert applied.stdout.count("statefulset.apps/") >= 4
