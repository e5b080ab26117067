"""Kubernetes' own controllers and our node together: Jobs, Deployments, StatefulSets, Services."""

from typing import Any

from kubebooth_cluster.node.launch import leftovers
from kubebooth_cluster.testing import RealCluster, eventually, found

_POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def _template(name: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "python", **container}], **spec},
    }


def _job(cluster: RealCluster, namespace: str, name: str, script: str, **spec: Any) -> str:
    template = _template(
        name,
        {"command": ["sh", "-c", script]},
        restartPolicy="Never",
        terminationGracePeriodSeconds=1,
    )
    where = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    cluster.api.post(where, {"metadata": {"name": name}, "spec": {"template": template, **spec}})
    return f"{where}/{name}"


def _finished(cluster: RealCluster, path: str) -> Any:
    """The condition that ended a Job."""

    def probe() -> Any:
        conditions = (found(cluster.api, path)["status"]).get("conditions") or ()
        ends = [one for one in conditions if one["type"] in ("Complete", "Failed")]
        return ends[0] if ends else None

    return eventually(probe, what="the end of the Job")


def _server(name: str, **spec: Any) -> dict[str, Any]:
    """A pod template that serves its working folder over HTTP on its own address."""
    command = [
        "sh",
        "-c",
        "cd /tmp; echo $HOSTNAME > name; exec python3 -m http.server 8080 -b $POD_IP",
    ]
    container = {
        "command": command,
        "env": [_POD_IP],
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
    }
    return _template(name, container, terminationGracePeriodSeconds=0, **spec)


def _service(cluster: RealCluster, namespace: str, name: str, **spec: Any) -> Any:
    ports = [{"name": "http", "port": 8080, "targetPort": "http"}]
    return cluster.api.post(
        f"/api/v1/namespaces/{namespace}/services",
        {"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": ports, **spec}},
    )


def _ask(cluster: RealCluster, namespace: str, name: str, script: str) -> str:
    """What a Python script prints in a pod."""
    body = {
        "metadata": {"name": name},
        **_template(name, {"command": ["python3", "-c", script]}, restartPolicy="Never"),
    }
    body["metadata"] = {"name": name}
    cluster.api.post(f"/api/v1/namespaces/{namespace}/pods", body)
    cluster.wait_pod(namespace, name, "Succeeded")
    return cluster.logs(namespace, name)


def test_a_job_completes_and_its_pod_disappears_with_it(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    path = _job(cluster, cluster_namespace, "good", "exit 0")
    assert _finished(cluster, path)["type"] == "Complete"

    cluster.api.delete(path, {"propagationPolicy": "Background"})

    eventually(lambda: not cluster.pods(cluster_namespace), what="the end of the pod")


def test_an_exit_code_that_the_policy_names_fails_the_job_at_once_and_others_retry(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [65]}}
    policy = {"rules": [rule]}
    fatal = _job(
        cluster, cluster_namespace, "fatal", "exit 65", podFailurePolicy=policy, backoffLimit=3
    )
    retried = _job(
        cluster, cluster_namespace, "retried", "exit 70", podFailurePolicy=policy, backoffLimit=0
    )

    assert _finished(cluster, fatal)["reason"] == "PodFailurePolicy"
    assert _finished(cluster, retried)["reason"] == "BackoffLimitExceeded"
    assert found(cluster.api, fatal)["status"]["failed"] == 1


def test_an_evicted_pod_is_a_disruption_that_the_policy_can_ignore(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    rule = {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    script = "trap 'exit 68' TERM; while :; do sleep 0.05; done"
    path = _job(
        cluster,
        cluster_namespace,
        "evicted",
        script,
        podFailurePolicy={"rules": [rule]},
        backoffLimit=0,
    )

    def running() -> Any:
        pods = [one for one in cluster.pods(cluster_namespace) if not _ending(one)]
        return pods[0] if pods and pods[0]["status"].get("phase") == "Running" else None

    first = eventually(running, what="a running pod")
    where = f"/api/v1/namespaces/{cluster_namespace}/pods/{first['metadata']['name']}"
    cluster.api.post(f"{where}/eviction", {"metadata": {"name": first["metadata"]["name"]}})

    def replaced() -> Any:
        pod = running()
        return pod if pod and pod["metadata"]["uid"] != first["metadata"]["uid"] else None

    eventually(replaced, what="the pod in its place")
    job = found(cluster.api, path)
    assert not job["status"].get("failed")
    assert not job["status"].get("conditions")


def _ending(pod: Any) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def test_a_deployment_rolls_and_its_service_reaches_every_pod_by_name(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    spec = {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": _server("web"),
    }
    where = f"/apis/apps/v1/namespaces/{cluster_namespace}/deployments"
    cluster.api.post(where, {"metadata": {"name": "web"}, "spec": spec})
    _service(cluster, cluster_namespace, "web")
    eventually(
        lambda: found(cluster.api, f"{where}/web")["status"].get("readyReplicas") == 2,
        what="two ready pods",
    )
    script = """
import os, time, urllib.request
seen = set()
for attempt in range(200):
    for host in ("web", "web.%(ns)s.svc.cluster.local"):
        try:
            answer = urllib.request.urlopen(f"http://{host}:8080/name", timeout=5)
            seen.add(answer.read().decode().strip())
        except OSError:
            time.sleep(0.1)
    if len(seen) == 2:
        break
print(*sorted(seen), os.environ["WEB_SERVICE_HOST"])
"""
    told = _ask(cluster, cluster_namespace, "client", script % {"ns": cluster_namespace})

    service = found(cluster.api, f"/api/v1/namespaces/{cluster_namespace}/services/web")
    names = sorted(
        pod["metadata"]["name"]
        for pod in cluster.pods(cluster_namespace)
        if pod["metadata"].get("labels", {}).get("app") == "web"
    )
    assert told.split() == [*names, service["spec"]["clusterIP"]]


def test_a_service_without_a_ready_pod_refuses_connections(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    _service(cluster, cluster_namespace, "empty")
    script = """
import urllib.error, urllib.request
try:
    urllib.request.urlopen("http://empty:8080/", timeout=5)
except urllib.error.URLError as error:
    print(type(error.reason).__name__)
"""
    assert _ask(cluster, cluster_namespace, "client", script) == "ConnectionRefusedError\n"


def test_a_stateful_set_keeps_its_claim_over_a_lost_pod_and_has_a_name(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    script = "echo $HOSTNAME >> /data/log; trap 'exit 0' TERM; while :; do sleep 0.05; done"
    container = {
        "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    spec = {
        "serviceName": "db",
        "replicas": 1,
        "selector": {"matchLabels": {"app": "db"}},
        "template": _template("db", container),
        "volumeClaimTemplates": [claim],
    }
    _service(cluster, cluster_namespace, "db", clusterIP="None")
    where = f"/apis/apps/v1/namespaces/{cluster_namespace}/statefulsets"
    cluster.api.post(where, {"metadata": {"name": "db"}, "spec": spec})
    first = cluster.wait_pod(cluster_namespace, "db-0", "Running")
    lookup = "import socket; print(socket.gethostbyname('db-0.db'))"
    assert _ask(cluster, cluster_namespace, "look", lookup).strip() == first["status"]["podIP"]

    path = f"/api/v1/namespaces/{cluster_namespace}/pods/db-0"
    cluster.api.delete(path)

    def replaced() -> Any:
        pod = found(cluster.api, path)
        fresh = pod and pod["metadata"]["uid"] != first["metadata"]["uid"]
        return pod if fresh and pod["status"].get("phase") == "Running" else None

    eventually(replaced, what="the pod in its place")
    claims = f"/api/v1/namespaces/{cluster_namespace}/persistentvolumeclaims"
    volume = found(cluster.api, f"{claims}/data-db-0")["spec"]["volumeName"]
    log = cluster.agent.folder / "claims" / volume / "log"
    eventually(lambda: log.read_text() == "db-0\ndb-0\n", what="both lives in one log")

    cluster.api.delete(f"{where}/db", {"propagationPolicy": "Foreground"})
    eventually(lambda: not found(cluster.api, f"{where}/db"), what="the end of the set")
    cluster.api.delete(f"{claims}/data-db-0")
    eventually(lambda: not log.parent.exists(), what="the removal of the claim's folder")
    eventually(lambda: not found(cluster.api, f"/api/v1/persistentvolumes/{volume}"), what="no PV")


def test_more_gpus_than_there_are_wait_for_their_turn(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    container = {
        "command": ["sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES; sleep 0.5"],
        "resources": {"limits": {"nvidia.com/gpu": "3"}},
    }
    for name in ("one", "two"):
        body = {**_template(name, container, restartPolicy="Never"), "metadata": {"name": name}}
        cluster.api.post(f"/api/v1/namespaces/{cluster_namespace}/pods", body)

    ended = [cluster.wait_pod(cluster_namespace, name, "Succeeded") for name in ("one", "two")]

    times = [
        (state["startedAt"], state["finishedAt"])
        for pod in ended
        for state in [pod["status"]["containerStatuses"][0]["state"]["terminated"]]
    ]
    assert max(start for start, _ in times) >= min(finish for _, finish in times)
    assert len(cluster.logs(cluster_namespace, "one").split(",")) == 3


def test_a_deleted_namespace_leaves_no_process(cluster: RealCluster) -> None:
    namespace = cluster.make_namespace("short-lived")
    script = "trap '' TERM; setsid sleep 600 & sleep 600"
    body = {
        **_template("stray", {"command": ["sh", "-c", script]}, terminationGracePeriodSeconds=1),
        "metadata": {"name": "stray"},
    }
    cluster.api.post(f"/api/v1/namespaces/{namespace}/pods", body)
    pod = cluster.wait_pod(namespace, "stray", "Running")
    folder = cluster.agent.folder / "pods" / pod["metadata"]["uid"]
    assert leftovers(folder)

    cluster.api.delete(f"/api/v1/namespaces/{namespace}")

    eventually(
        lambda: not found(cluster.api, f"/api/v1/namespaces/{namespace}"), what="the end of it"
    )
    assert leftovers(folder) == []
