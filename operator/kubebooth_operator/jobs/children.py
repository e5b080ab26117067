"""Pure builders of a worker's Run and Job, in the order of `kubectl explain`.

They know the worker pod contract; they know nothing of what already exists.
"""

from __future__ import annotations

from typing import Any

from kubebooth_api.digests import canonical_json, digest_bytes
from kubebooth_api.exitcodes import FINAL, ExitCode
from kubebooth_api.runs import token_variable
from kubebooth_api.v1alpha1.runtime import Runtime

from kubebooth_operator.jobs import names
from kubebooth_operator.jobs.work import PURGE, Place, Work
from kubebooth_operator.resources import API_VERSION
from kubebooth_operator.settings import Settings

WORKER = "worker"
"""Name of the main container."""
RUN_FOLDER = "/etc/kubebooth/run"
RUN_FILE = "run.json"
SCRATCH_FOLDER = "/var/lib/kubebooth"
PROGRESS_PORT = 8080
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
_USER = 65532

Json = dict[str, Any]


def owner_reference(kind: str, name: str, uid: str) -> Json:
    """The object as controller of a child."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def config_map(work: Work) -> Json:
    """The Run as a file; named by its content, so it never changes."""
    owner = work.run.session
    text = canonical_json(work.run.dump()).decode()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.config_map(owner.name, work.stage, digest_bytes(text.encode())),
            "namespace": owner.namespace,
            "labels": names.labels(work.owner, owner.name, work.stage),
            "ownerReferences": [owner_reference(work.owner, owner.name, owner.uid)],
        },
        "immutable": True,
        "data": {RUN_FILE: text},
    }


def job(work: Work, series: str, runtime: Runtime, place: Place, settings: Settings) -> Json:
    """One try of a worker, in a series of tries. Interrupted pods are replaced without counting;
    any other failure ends the Job, and the plan decides about the next try."""
    owner = work.run.session
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.job(owner.name, owner.uid, work.stage),
            "namespace": owner.namespace,
            "labels": {**names.labels(work.owner, owner.name, work.stage), **_queue(work, runtime)},
            "annotations": {
                names.SERIES_ANNOTATION: series,
                names.TARGET_ANNOTATION: work.target,
                names.WORK_ANNOTATION: work.digest,
            },
            "ownerReferences": [owner_reference(work.owner, owner.name, owner.uid)],
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podFailurePolicy": {"rules": _failure_rules()},
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {
                    "annotations": {"kubectl.kubernetes.io/default-container": WORKER},
                    "labels": names.labels(work.owner, owner.name, work.stage),
                },
                "spec": _pod(work, runtime, place, settings),
            },
        },
    }


def _queue(work: Work, runtime: Runtime) -> dict[str, str]:
    # A purge frees storage and must not wait behind the training that it cleans up after.
    if runtime.queue_name is None or work.stage == PURGE:
        return {}
    if runtime.queue_priority_class_name is None:
        return {QUEUE_LABEL: runtime.queue_name}
    return {
        QUEUE_LABEL: runtime.queue_name,
        QUEUE_PRIORITY_LABEL: runtime.queue_priority_class_name,
    }


def _failure_rules() -> list[Json]:
    return [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": WORKER,
                "operator": "In",
                "values": sorted(int(code) for code in FINAL),
            },
        },
        {
            "action": "Ignore",
            "onExitCodes": {
                "containerName": WORKER,
                "operator": "In",
                "values": [int(ExitCode.PREEMPTED)],
            },
        },
        {
            "action": "Ignore",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
        },
    ]


def _pod(work: Work, runtime: Runtime, place: Place, settings: Settings) -> Json:
    config = config_map(work)["metadata"]["name"]
    return {
        "automountServiceAccountToken": False,
        "containers": [_container(work, runtime, place, settings)],
        "enableServiceLinks": False,
        **(
            {"imagePullSecrets": [secret.dump() for secret in runtime.image_pull_secrets]}
            if runtime.image_pull_secrets
            else {}
        ),
        **({"nodeSelector": dict(runtime.node_selector)} if runtime.node_selector else {}),
        **(
            {"priorityClassName": runtime.priority_class_name}
            if runtime.priority_class_name
            else {}
        ),
        "restartPolicy": "Never",
        **({"runtimeClassName": runtime.runtime_class_name} if runtime.runtime_class_name else {}),
        "securityContext": {
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "runAsGroup": _USER,
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": runtime.termination_grace_period_seconds,
        **(
            {"tolerations": [toleration.dump() for toleration in runtime.tolerations]}
            if runtime.tolerations
            else {}
        ),
        "volumes": [
            {"name": "run", "configMap": {"name": config}},
            {"name": "scratch", "emptyDir": {"sizeLimit": runtime.resources.scratch}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    }


def _container(work: Work, runtime: Runtime, place: Place, settings: Settings) -> Json:
    return {
        "name": WORKER,
        "image": runtime.image or settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["kubebooth-trainer", "run", f"{RUN_FOLDER}/{RUN_FILE}"],
        "env": [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {
                "name": "AWS_ACCESS_KEY_ID",
                "valueFrom": {"secretKeyRef": {"name": place.secret, "key": "accessKey"}},
            },
            {
                "name": "AWS_SECRET_ACCESS_KEY",
                "valueFrom": {"secretKeyRef": {"name": place.secret, "key": "secretKey"}},
            },
            *_tokens(work),
            {"name": "HOME", "value": SCRATCH_FOLDER},
            {"name": "KUBEBOOTH_WORKDIR", "value": SCRATCH_FOLDER},
            # Without it torch starts a thread for each core of the node, whatever the limit is.
            {
                "name": "OMP_NUM_THREADS",
                "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}},
            },
        ],
        # Generous: a false alarm costs a training try, a hung worker only time.
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": "progress"},
            "periodSeconds": 30,
            "timeoutSeconds": 10,
            "failureThreshold": 10,
        },
        "ports": [{"name": "progress", "containerPort": PROGRESS_PORT, "protocol": "TCP"}],
        "resources": {"limits": dict(work.amounts), "requests": dict(work.amounts)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "startupProbe": {
            "httpGet": {"path": "/healthz", "port": "progress"},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 120,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "run", "mountPath": RUN_FOLDER, "readOnly": True},
            {"name": "scratch", "mountPath": SCRATCH_FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (a private volume)
        ],
    }


def _tokens(work: Work) -> list[Json]:
    """Only the worker that needs a token gets it, each once."""
    by_variable = {token_variable(token.ref): token.ref for token in work.tokens}
    return [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": ref.name, "key": ref.key}}}
        for variable, ref in by_variable.items()
    ]
