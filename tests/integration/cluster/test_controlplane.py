"""The control plane is a real one, and each of its parts survives being killed."""

from pathlib import Path

import pytest
from kubebooth_cluster import processes
from kubebooth_cluster.controlplane import COMPONENTS, ControlPlane, Options
from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.testing import RealApi, eventually, found


def test_the_api_server_is_the_pinned_kubernetes(control_plane: RealApi) -> None:
    assert control_plane.api.get("/version")["gitVersion"].startswith("v1.36.")


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_killed_part_comes_back_on_its_port_with_its_data(
    control_plane: RealApi, namespace: str, component: str
) -> None:
    plane, api = control_plane.control_plane, control_plane.api
    where = f"/api/v1/namespaces/{namespace}/configmaps"
    api.post(where, {"metadata": {"name": "kept"}, "data": {"a": "1"}})
    before = plane.process(component)

    plane.kill(component)
    assert plane.process(component) is None
    plane.restart(component)

    assert plane.process(component) != before
    assert api.get(f"{where}/kept")["data"] == {"a": "1"}
    made = control_plane.make_namespace("again")
    assert found(api, f"/api/v1/namespaces/{made}/serviceaccounts/default")


def test_starting_twice_changes_nothing_and_stopping_ends_every_process(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, options=Options(die_with_parent=True))
    plane.start()
    running = [plane.process(component) for component in COMPONENTS]
    plane.start()
    assert [plane.process(component) for component in COMPONENTS] == running

    plane.stop()

    assert not any(process and processes.is_alive(process) for process in running)


def test_a_process_id_used_again_by_a_stranger_is_never_signalled(tmp_path: Path) -> None:
    stranger = processes.start(["sleep", "60"], log=tmp_path / "log", die_with_parent=True)
    claimed = processes.ProcessId(stranger.pid, stranger.started_ticks - 1)

    processes.kill(claimed)

    assert processes.is_alive(stranger)
    processes.kill(stranger)


def test_a_part_that_cannot_start_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    flags = {"kube-apiserver": ["--no-such-flag"]}
    plane = ControlPlane(tmp_path, options=Options(die_with_parent=True, flags=flags))
    try:
        with pytest.raises(ClusterError, match="unknown flag: --no-such-flag"):
            plane.start()
    finally:
        plane.stop()


def test_an_older_kubernetes_is_answered_by_the_same_binary(tmp_path: Path) -> None:
    options = Options(die_with_parent=True, emulated_version="1.34")
    plane = ControlPlane(tmp_path, options=options)
    try:
        plane.start()
        assert plane.api().get("/version")["emulationMinor"] == "34"
    finally:
        plane.stop()


def test_every_workload_has_its_controller(control_plane: RealApi, namespace: str) -> None:
    api = control_plane.api
    api.post(
        f"/apis/batch/v1/namespaces/{namespace}/jobs",
        {
            "metadata": {"name": "one"},
            "spec": {
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "containers": [{"name": "main", "image": "none"}],
                    }
                }
            },
        },
    )
    pods = eventually(
        lambda: api.get(f"/api/v1/namespaces/{namespace}/pods")["items"], what="a pod of the Job"
    )
    assert pods[0]["metadata"]["ownerReferences"][0]["name"] == "one"
