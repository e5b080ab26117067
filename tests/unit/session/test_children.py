"""Names and manifests of children."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_api.runs import RUN, SessionIdentity
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec
from kubebooth_operator.jobs import children, names
from kubebooth_operator.jobs.work import Work, resolve_place
from kubebooth_operator.resources import label_value
from kubebooth_operator.session import asked

from tests.unit.session.booth import SETTINGS, spec

_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", fullmatch=True)


def _prepare(name: str = "rex", **fields: Any) -> Work:
    parsed = DreamboothSessionSpec.parse(spec(**fields))
    identity = SessionIdentity(namespace="default", name=name, uid="uid-1")
    return asked.prepare(parsed, identity, resolve_place(parsed.storage, SETTINGS))


def _job(**fields: Any) -> Any:
    parsed = DreamboothSessionSpec.parse(spec(**fields))
    work = _prepare(**fields)
    place = resolve_place(parsed.storage, SETTINGS)
    return children.job(work, "sha256:0", parsed.runtime, place, SETTINGS)


@settings(max_examples=200, deadline=None)
@given(_NAMES, st.text(min_size=1, max_size=40), st.sampled_from(("Prepare", "Train", "Purge")))
def test_names_fit_a_host_name_with_the_pods_suffix(name: str, uid: str, stage: str) -> None:
    job = names.job(name, uid, stage)
    assert len(f"{job}-abcde") <= 63
    assert job == job.strip("-.")
    assert "." not in job
    assert len(names.config_map(name, stage, "sha256:" + "a" * 64)) <= 63
    assert all(
        len(value) <= 63 for value in names.labels("DreamboothSession", name, stage).values()
    )


def test_namesakes_with_other_uids_never_share_a_job() -> None:
    assert names.job("rex", "uid-1", "Train") != names.job("rex", "uid-2", "Train")


def test_the_label_is_the_name_where_it_fits() -> None:
    assert label_value("rex") == "rex"
    long = "a" * 100
    assert label_value(long) != label_value(long + "b")
    assert len(label_value(long)) <= 63


def test_the_run_in_the_config_map_is_what_was_asked() -> None:
    work = _prepare()
    manifest = children.config_map(work)
    assert RUN.validate_json(manifest["data"]["run.json"]) == work.run
    assert manifest["immutable"] is True
    other = children.config_map(_prepare(captions={"mode": "None"}))
    assert other["metadata"]["name"] != manifest["metadata"]["name"]


def test_no_secret_stands_in_a_manifest() -> None:
    text = json.dumps([children.config_map(_prepare()), _job()])
    assert "secretKeyRef" in text
    assert "AWS_SECRET_ACCESS_KEY" in text
    assert '"value": "AKIA' not in text


def test_a_worker_has_no_token_and_no_privilege() -> None:
    pod = _job()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_the_accelerator_is_asked_by_the_train_pod_only() -> None:
    limits = _job()["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "1", "memory": "2Gi"}


@pytest.mark.parametrize(
    ("field", "path", "value"),
    [
        ({"nodeSelector": {"a": "b"}}, "nodeSelector", {"a": "b"}),
        ({"tolerations": [{"key": "gpu"}]}, "tolerations", [{"key": "gpu", "operator": "Equal"}]),
        ({"priorityClassName": "high"}, "priorityClassName", "high"),
        ({"runtimeClassName": "nvidia"}, "runtimeClassName", "nvidia"),
        ({"terminationGracePeriodSeconds": 300}, "terminationGracePeriodSeconds", 300),
        ({"imagePullSecrets": [{"name": "r"}]}, "imagePullSecrets", [{"name": "r"}]),
    ],
)
def test_the_runtime_reaches_the_pod(field: dict[str, Any], path: str, value: object) -> None:
    assert _job(runtime=field)["spec"]["template"]["spec"][path] == value
    if path != "terminationGracePeriodSeconds":
        assert path not in _job()["spec"]["template"]["spec"]


def test_queue_labels_stand_on_the_job() -> None:
    runtime = {"queueName": "team-a", "queuePriorityClassName": "low"}
    labels = _job(runtime=runtime)["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team-a"
    assert labels["kueue.x-k8s.io/priority-class"] == "low"


def test_a_moved_default_store_is_the_same_work_but_another_bucket_is_not() -> None:
    from dataclasses import replace

    parsed = DreamboothSessionSpec.parse(spec())
    identity = SessionIdentity(namespace="default", name="rex", uid="uid-1")

    def work(**changes: str) -> Work:
        place = resolve_place(parsed.storage, replace(SETTINGS, **changes))
        return asked.prepare(parsed, identity, place)

    moved = work(store_endpoint="http://elsewhere:9000", store_region="moon")
    assert (moved.target, moved.digest) == (work().target, work().digest)
    assert moved.run != work().run
    assert work(store_bucket="other").target != work().target
    named = _prepare(storage={"endpoint": "http://elsewhere:9000"})
    assert named.target != work().target
