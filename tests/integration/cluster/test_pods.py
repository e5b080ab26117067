"""Pods run as a kubelet would run them: environment, volumes, order, ends, limits."""

import base64
import json
from typing import Any

from kubebooth_cluster.testing import RealCluster, eventually, found


def _container(script: str, **more: Any) -> dict[str, Any]:
    return {"name": "main", "image": "busybox", "command": ["sh", "-c", script], **more}


def _create(
    cluster: RealCluster, namespace: str, name: str, *containers: dict[str, Any], **spec: Any
) -> None:
    body = {
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "containers": list(containers), **spec},
    }
    cluster.api.post(f"/api/v1/namespaces/{namespace}/pods", body)


def _state(pod: Any, index: int = 0, kind: str = "containerStatuses") -> Any:
    return pod["status"][kind][index]["state"]


def _condition(pod: Any, kind: str) -> Any:
    return next(one for one in pod["status"]["conditions"] if one["type"] == kind)


def _pod(cluster: RealCluster, namespace: str, name: str) -> Any:
    return found(cluster.api, f"/api/v1/namespaces/{namespace}/pods/{name}")


def _configure(cluster: RealCluster, namespace: str) -> None:
    where = f"/api/v1/namespaces/{namespace}"
    data = {"accessKey": "ak", "secretKey": "s=k $(X) \n2"}
    cluster.api.post(f"{where}/secrets", {"metadata": {"name": "s3"}, "stringData": data})
    cluster.api.post(
        f"{where}/configmaps", {"metadata": {"name": "cm"}, "data": {"a": "1", "run.json": "{}"}}
    )


def test_the_environment_is_the_images_and_the_pods_and_nothing_else(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    _configure(cluster, cluster_namespace)
    env = [
        {"name": "PLAIN", "value": "x"},
        {"name": "EXPANDED", "value": "$(PLAIN)-$(CM_a)-$$(PLAIN)-$(UNKNOWN)"},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "secretKey"}}},
        {
            "name": "ABSENT",
            "valueFrom": {"secretKeyRef": {"name": "no", "key": "no", "optional": True}},
        },
        {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
    ]
    script = "import json,os; print(json.dumps(dict(os.environ)))"
    container = {
        "name": "main",
        "image": "ghcr.io/kubebooth/trainer:any",
        "command": ["python", "-c", script],
        "env": env,
        "envFrom": [{"prefix": "CM_", "configMapRef": {"name": "cm"}}],
        "resources": {"limits": {"memory": "256Mi", "nvidia.com/gpu": "2"}},
    }
    _create(cluster, cluster_namespace, "env", container)
    pod = cluster.wait_pod(cluster_namespace, "env", "Succeeded")

    seen = json.loads(cluster.logs(cluster_namespace, "env"))

    assert seen.pop("PATH").split(":")[0].endswith("/bin")
    assert len(seen.pop("NVIDIA_VISIBLE_DEVICES").split(",")) == 2
    assert seen.pop("KUBERNETES_SERVICE_PORT") == seen.pop("KUBERNETES_SERVICE_PORT_HTTPS")
    assert seen == {
        "APP": "env",
        "CM_a": "1",
        "CM_run.json": "{}",
        "EXPANDED": "x-1-$(PLAIN)-$(UNKNOWN)",
        "HOME": "/",
        "HOSTNAME": "env",
        "KEY": "s=k $(X) \n2",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "LANG": "C.UTF-8",
        "MEM": str(256 << 20),
        "PLAIN": "x",
        "POD_IP": pod["status"]["podIP"],
        "PWD": "/",
    }


def test_volumes_hold_what_they_name_and_read_only_means_it(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    _configure(cluster, cluster_namespace)
    volumes = [
        {"name": "cm", "configMap": {"name": "cm"}},
        {
            "name": "keys",
            "secret": {"secretName": "s3", "items": [{"key": "accessKey", "path": "k"}]},
        },
        {"name": "work", "emptyDir": {}},
        {
            "name": "about",
            "downwardAPI": {
                "items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
            },
        },
    ]
    mounts = [
        {"name": "cm", "mountPath": "/etc/kubebooth/run"},
        {"name": "cm", "mountPath": "/etc/one.json", "subPath": "run.json"},
        {"name": "keys", "mountPath": "/keys"},
        {"name": "work", "mountPath": "/var/lib/kubebooth"},
        {"name": "work", "mountPath": "/frozen", "subPath": "part", "readOnly": True},
        {"name": "about", "mountPath": "/about"},
    ]
    script = """
        set -e
        cat /etc/kubebooth/run/run.json /etc/one.json /keys/k /about/labels; echo
        ls /keys | wc -l
        touch /var/lib/kubebooth/part/made; ls /frozen
        for path in /etc/kubebooth/run/x /frozen/x /usr/x /x; do
            touch $path 2>/dev/null && echo "wrote $path"
        done
        ls -d ~root/.cache /home /tmp/kbt-* 2>/dev/null || echo "nothing of the host"
    """
    container = _container(
        script, volumeMounts=mounts, securityContext={"readOnlyRootFilesystem": True}
    )
    _create(cluster, cluster_namespace, "volumes", container, volumes=volumes)

    cluster.wait_pod(cluster_namespace, "volumes", "Succeeded")

    told = cluster.logs(cluster_namespace, "volumes").splitlines()
    assert told == ['{}{}akapp="volumes"', "1", "made", "nothing of the host"]


def test_the_service_account_token_is_one_that_the_api_server_knows(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    script = """
import json, os, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
request = urllib.request.Request(
    server + "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    body.encode(),
    {
        "Authorization": "Bearer " + open(folder + "/token").read(),
        "Content-Type": "application/json",
    },
)
context = ssl.create_default_context(cafile=folder + "/ca.crt")
answer = json.load(urllib.request.urlopen(request, context=context))
print(answer["status"]["userInfo"]["username"], open(folder + "/namespace").read())
"""
    container = {"name": "main", "image": "python", "command": ["python3", "-c", script]}
    _create(cluster, cluster_namespace, "token", container)
    bare = _container("ls /var/run/secrets 2>&1 || true")
    _create(cluster, cluster_namespace, "bare", bare, automountServiceAccountToken=False)

    cluster.wait_pod(cluster_namespace, "token", "Succeeded")
    cluster.wait_pod(cluster_namespace, "bare", "Succeeded")

    account = f"system:serviceaccount:{cluster_namespace}:default"
    assert cluster.logs(cluster_namespace, "token") == f"{account} {cluster_namespace}\n"
    assert "No such file" in cluster.logs(cluster_namespace, "bare")


def test_a_missing_secret_waits_with_the_kubelets_words_and_starts_when_it_comes(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    reference = {"secretKeyRef": {"name": "later", "key": "accessKey"}}
    container = _container("echo $K", env=[{"name": "K", "valueFrom": reference}])
    _create(cluster, cluster_namespace, "waits", container)

    def waiting() -> Any:
        pod = _pod(cluster, cluster_namespace, "waits")
        statuses = pod["status"].get("containerStatuses")
        state = statuses[0]["state"].get("waiting", {}) if statuses else {}
        return state if state.get("reason") == "CreateContainerConfigError" else None

    assert eventually(waiting, what="the waiting reason")["message"] == 'secret "later" not found'

    secrets = f"/api/v1/namespaces/{cluster_namespace}/secrets"
    cluster.api.post(secrets, {"metadata": {"name": "later"}, "stringData": {"other": "1"}})
    eventually(
        lambda: "couldn't find key accessKey in Secret" in (waiting() or {}).get("message", ""),
        what="the missing key",
    )
    value = base64.b64encode(b"found").decode()
    cluster.api.merge(f"{secrets}/later", {"data": {"accessKey": value}})

    cluster.wait_pod(cluster_namespace, "waits", "Succeeded")
    assert cluster.logs(cluster_namespace, "waits") == "found\n"


def test_an_unknown_image_is_an_image_pull_error_until_the_table_has_it(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    image = f"registry.example/{cluster_namespace}:1"
    _create(cluster, cluster_namespace, "image", _container("echo here", image=image))
    seen = set()

    def both() -> bool:
        pod = _pod(cluster, cluster_namespace, "image")
        for status in pod["status"].get("containerStatuses") or ():
            seen.add(status["state"].get("waiting", {}).get("reason"))
        return {"ErrImagePull", "ImagePullBackOff"} <= seen

    eventually(both, what="both reasons")
    cluster.agent.images_file.write_text(json.dumps({image: {"env": {"A": "1"}}}))
    cluster.wait_pod(cluster_namespace, "image", "Succeeded")
    assert cluster.logs(cluster_namespace, "image") == "here\n"


def test_init_containers_run_in_order_and_a_failing_one_fails_the_pod(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    mount = [{"name": "work", "mountPath": "/scratch"}]
    volumes = [{"name": "work", "emptyDir": {}}]
    inits = [
        {**_container(f"echo {name} >> /scratch/order", volumeMounts=mount), "name": name}
        for name in ("one", "two")
    ]
    main = _container("cat /scratch/order", volumeMounts=mount)
    _create(cluster, cluster_namespace, "good", main, initContainers=inits, volumes=volumes)
    broken = [{**_container("exit 9"), "name": "broken"}]
    _create(cluster, cluster_namespace, "bad", main, initContainers=broken, volumes=volumes)

    cluster.wait_pod(cluster_namespace, "good", "Succeeded")
    pod = cluster.wait_pod(cluster_namespace, "bad", "Failed")

    assert cluster.logs(cluster_namespace, "good") == "one\ntwo\n"
    assert _state(pod, kind="initContainerStatuses")["terminated"]["exitCode"] == 9
    assert _condition(pod, "Initialized")["reason"] == "ContainersNotInitialized"
    assert "waiting" in _state(pod) or _state(pod)["terminated"]["exitCode"] == 137


def test_a_sidecar_starts_before_the_main_container_and_stops_after_it(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    mount = [{"name": "work", "mountPath": "/scratch"}]
    sidecar = _container(
        "trap 'echo sidecar stops >> /scratch/order; exit 0' TERM;"
        "sleep 0.3; touch /scratch/up; while :; do sleep 0.05; done",
        volumeMounts=mount,
        restartPolicy="Always",
        startupProbe={"exec": {"command": ["test", "-e", "/scratch/up"]}, "periodSeconds": 1},
    )
    sidecar["name"] = "side"
    main = _container("test -e /scratch/up && echo main >> /scratch/order", volumeMounts=mount)
    reader = "/order"
    volumes = [{"name": "work", "emptyDir": {}}]
    _create(cluster, cluster_namespace, "pod", main, initContainers=[sidecar], volumes=volumes)
    pod = cluster.wait_pod(cluster_namespace, "pod", "Succeeded")

    folder = cluster.agent.folder / "pods" / pod["metadata"]["uid"] / "volumes" / "work"
    assert (folder / reader.strip("/")).read_text() == "main\nsidecar stops\n"
    assert _state(pod, kind="initContainerStatuses")["terminated"]["exitCode"] == 0


def test_exit_codes_signals_and_termination_messages_are_told(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    long = "printf 'x%.0s' $(seq 5000) > /dev/termination-log; printf END >> /dev/termination-log"
    containers = [
        {**_container(f"{long}; exit 65"), "name": "coded"},
        {**_container("sh -c 'kill -9 $$$$'; exit $?"), "name": "killed"},
        {
            **_container(
                "echo the last words; exit 1", terminationMessagePolicy="FallbackToLogsOnError"
            ),
            "name": "logged",
        },
        {**_container(""), "command": ["no-such-program"], "name": "absent"},
    ]
    _create(cluster, cluster_namespace, "ends", *containers)

    pod = cluster.wait_pod(cluster_namespace, "ends", "Failed")

    coded, killed, logged, absent = [_state(pod, index)["terminated"] for index in range(4)]
    assert (coded["exitCode"], coded["reason"]) == (65, "Error")
    assert (len(coded["message"]), coded["message"][-4:]) == (4096, "xEND")
    assert killed["exitCode"] == 137
    assert (logged["exitCode"], logged["message"]) == (1, "the last words\n")
    assert (absent["exitCode"], absent["reason"]) == (128, "StartError")
    assert "executable file not found" in absent["message"]
    assert _condition(pod, "Ready")["reason"] == "PodFailed"


def test_more_memory_than_the_limit_is_an_oom_kill(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    hungry = {
        "name": "main",
        "image": "python",
        "command": ["python3", "-c", "x = b'x' * (300 << 20); import time; time.sleep(60)"],
        "resources": {"limits": {"memory": "100Mi"}},
    }
    _create(cluster, cluster_namespace, "hungry", hungry)

    pod = cluster.wait_pod(cluster_namespace, "hungry", "Failed")

    assert _state(pod)["terminated"]["reason"] == "OOMKilled"
    assert _state(pod)["terminated"]["exitCode"] == 137


def test_a_crashing_container_restarts_with_growing_back_off(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    _create(cluster, cluster_namespace, "crash", _container("exit 3"), restartPolicy="Always")

    def crashed() -> Any:
        status = _pod(cluster, cluster_namespace, "crash")["status"]
        main = (status.get("containerStatuses") or [{}])[0]
        waiting = main.get("state", {}).get("waiting", {})
        looping = waiting.get("reason") == "CrashLoopBackOff" and main["restartCount"] >= 2
        return (status["phase"], main, waiting["message"]) if looping else None

    phase, main, message = eventually(crashed, what="CrashLoopBackOff")
    assert phase == "Running"
    assert main["lastState"]["terminated"]["exitCode"] == 3
    assert message.startswith("back-off 2s restarting failed container=main pod=crash_")
    previous = cluster.logs(cluster_namespace, "crash", "--previous")
    assert previous == ""


def test_termination_grants_the_grace_period_runs_pre_stop_and_then_kills(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    polite = _container("trap 'echo term; exit 7' TERM; while :; do sleep 0.05; done")
    polite["lifecycle"] = {"preStop": {"exec": {"command": ["touch", "/scratch/pre"]}}}
    polite["volumeMounts"] = [{"name": "work", "mountPath": "/scratch"}]
    volumes = [{"name": "work", "emptyDir": {}}]
    _create(cluster, cluster_namespace, "polite", polite, volumes=volumes)
    stubborn = _container("trap '' TERM; while :; do sleep 0.05; done")
    _create(cluster, cluster_namespace, "stubborn", stubborn, terminationGracePeriodSeconds=1)
    running = cluster.wait_pod(cluster_namespace, "polite", "Running")
    cluster.wait_pod(cluster_namespace, "stubborn", "Running")
    finalizer = {"metadata": {"finalizers": ["test.example/keep"]}}
    where = f"/api/v1/namespaces/{cluster_namespace}/pods"
    for name in ("polite", "stubborn"):
        cluster.api.merge(f"{where}/{name}", finalizer)
        cluster.api.delete(f"{where}/{name}")

    ended = [cluster.wait_pod(cluster_namespace, name, "Failed") for name in ("polite", "stubborn")]

    assert [_state(pod)["terminated"]["exitCode"] for pod in ended] == [7, 137]
    folder = cluster.agent.folder / "pods" / running["metadata"]["uid"]
    assert (folder / "volumes" / "work" / "pre").exists()
    for name in ("polite", "stubborn"):
        cluster.api.merge(f"{where}/{name}", {"metadata": {"finalizers": None}})
    eventually(lambda: not _pod(cluster, cluster_namespace, "polite"), what="the end")
    eventually(lambda: not folder.exists(), what="the removal of its folder")


def test_probes_gate_readiness_and_restart_the_unhealthy(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    quick = {"periodSeconds": 1, "failureThreshold": 1}
    server = {
        "name": "main",
        "image": "python",
        "command": ["sh", "-c", "cd /scratch; exec python3 -m http.server --bind $POD_IP 8080"],
        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "ports": [{"name": "http", "containerPort": 8080}],
        "volumeMounts": [{"name": "work", "mountPath": "/scratch"}],
        "startupProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, **quick},
        "livenessProbe": {"exec": {"command": ["test", "!", "-e", "/scratch/sick"]}, **quick},
        "lifecycle": {"postStart": {"exec": {"command": ["touch", "/scratch/started"]}}},
    }
    volumes = [{"name": "work", "emptyDir": {}}]
    _create(
        cluster,
        cluster_namespace,
        "web",
        server,
        volumes=volumes,
        restartPolicy="Always",
        terminationGracePeriodSeconds=1,
    )
    pod = cluster.wait_pod(cluster_namespace, "web", "Running")
    work = cluster.agent.folder / "pods" / pod["metadata"]["uid"] / "volumes" / "work"
    eventually(lambda: (work / "started").exists(), what="postStart")
    assert _condition(pod, "Ready")["status"] == "False"

    def main() -> Any:
        return _pod(cluster, cluster_namespace, "web")["status"]["containerStatuses"][0]

    eventually(lambda: main()["started"] and not main()["ready"], what="started, not ready")
    (work / "ready").write_text("yes")
    eventually(lambda: main()["ready"], what="ready")
    (work / "sick").write_text("yes")
    eventually(lambda: main()["restartCount"] == 1, what="a restart")
    (work / "sick").unlink()
    eventually(lambda: main()["ready"], what="ready again")


def test_kubectl_logs_follows_tails_and_ends(cluster: RealCluster, cluster_namespace: str) -> None:
    script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done"
    _create(cluster, cluster_namespace, "talks", _container(script))
    cluster.wait_pod(cluster_namespace, "talks", "Running")

    followed = cluster.logs(cluster_namespace, "talks", "--follow")

    assert followed.splitlines() == [f"line {number}" for number in range(1, 6)]
    assert cluster.logs(cluster_namespace, "talks", "--tail=2") == "line 4\nline 5\n"
    assert cluster.logs(cluster_namespace, "talks", "--limit-bytes=4") == "line"


def test_a_pod_past_its_deadline_or_over_its_scratch_limit_fails(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    _create(
        cluster,
        cluster_namespace,
        "late",
        _container("sleep 60"),
        activeDeadlineSeconds=1,
        terminationGracePeriodSeconds=1,
    )
    full = _container(
        "head -c 3000000 /dev/zero > /scratch/big; sleep 60",
        volumeMounts=[{"name": "work", "mountPath": "/scratch"}],
    )
    volumes = [{"name": "work", "emptyDir": {"sizeLimit": "1Mi"}}]
    _create(
        cluster,
        cluster_namespace,
        "full",
        full,
        volumes=volumes,
        terminationGracePeriodSeconds=1,
    )
    late = cluster.wait_pod(cluster_namespace, "late", "Failed")
    evicted = cluster.wait_pod(cluster_namespace, "full", "Failed")

    assert late["status"]["reason"] == "DeadlineExceeded"
    assert evicted["status"]["reason"] == "Evicted"
    kinds = {one["type"] for one in evicted["status"]["conditions"]}
    assert "DisruptionTarget" not in kinds


def test_a_root_image_is_refused_where_root_is_forbidden_and_users_are_what_is_asked(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    strict = {"runAsNonRoot": True}
    _create(cluster, cluster_namespace, "root", _container("id -u", securityContext=strict))
    plain = {"runAsUser": 1234, "runAsGroup": 99}
    _create(cluster, cluster_namespace, "user", _container("id -u; id -g", securityContext=plain))

    cluster.wait_pod(cluster_namespace, "user", "Succeeded")

    def refused() -> Any:
        statuses = _pod(cluster, cluster_namespace, "root")["status"].get("containerStatuses")
        return statuses and statuses[0]["state"].get("waiting", {}).get("message")

    assert "image will run as root" in eventually(refused, what="the refusal")
    assert cluster.logs(cluster_namespace, "user") == "1234\n99\n"


def test_a_sub_path_that_leaves_its_volume_is_refused(
    cluster: RealCluster, cluster_namespace: str
) -> None:
    mount = {"name": "work", "mountPath": "/scratch"}
    init = {**_container("ln -s / /scratch/out", volumeMounts=[mount]), "name": "plant"}
    main = _container(
        "ls /escape", volumeMounts=[{**mount, "mountPath": "/escape", "subPath": "out"}]
    )
    volumes = [{"name": "work", "emptyDir": {}}]
    _create(cluster, cluster_namespace, "out", main, initContainers=[init], volumes=volumes)

    def refused() -> Any:
        statuses = _pod(cluster, cluster_namespace, "out")["status"].get("containerStatuses")
        return statuses and statuses[0]["state"].get("waiting", {}).get("message")

    assert "it leaves the volume" in eventually(refused, what="the refusal")
