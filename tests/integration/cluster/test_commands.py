"""The command line brings a cluster up, finds it again, and leaves nothing behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubebooth_cluster import binaries
from kubebooth_cluster.node.launch import leftovers
from kubebooth_cluster.testing import eventually, short_folder

# setpriv still has root's powers when it starts a program; `env` has not.
_AS_NOBODY = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "env")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home() -> Iterator[Path]:
    yield from short_folder()


@pytest.fixture
def run(home: Path) -> Iterator[Run]:
    """Run one verb with a state folder of the test's own."""
    environment = {**os.environ, "XDG_STATE_HOME": str(home)}

    def verb(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kubebooth_cluster", *words, "--name", "trial"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    yield verb
    verb("clean")


def test_up_runs_pods_up_again_changes_nothing_down_leaves_no_process(run: Run, home: Path) -> None:
    first = run("up", "--gpus", "2")
    assert first.returncode == 0, first.stderr
    pids = run("status").stdout
    assert run("up").returncode == 0
    assert run("status").stdout == pids

    exports = dict(
        line.removeprefix("export ").split("=", 1) for line in run("env").stdout.splitlines()
    )
    kubectl = [str(binaries.kubectl()), "--kubeconfig", exports["KUBECONFIG"]]
    made = subprocess.run(
        [*kubectl, "run", "sleeper", "--image=busybox", "--restart=Never", "--", "sleep", "600"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    folder = home / "kubebooth" / "clusters" / "trial"
    eventually(lambda: leftovers(folder), what="the pod's process")
    assert os.access(exports["KUBEBOOTH_HELM"], os.X_OK)

    assert run("down").returncode == 0

    assert leftovers(folder) == []
    told = run("status")
    assert told.returncode == 1
    assert "pid" not in told.stdout
    assert run("clean").returncode == 0
    assert not folder.exists()


def _python_for_everyone() -> str | None:
    """A Python of our version that an ordinary user may run, if there is one."""
    for program in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        answer = subprocess.run(
            [*_AS_NOBODY, program, "-c", "import sys; print(sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.stdout.strip() == str(sys.version_info[:2]):
            return program
    return None


def _is_ours(path: str) -> bool:
    """Whether it holds packages, and not the standard library of this very Python."""
    return Path(path).is_dir() and not Path(path, "os.py").exists() and "lib-dynload" not in path


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs all the other tests")
def test_an_ordinary_user_can_run_it_too(home: Path) -> None:
    python = _python_for_everyone()
    if python is None:
        pytest.skip("no Python of this version is open to ordinary users here")
    assets = home / "assets"
    shutil.copytree(binaries.controlplane_assets(), assets, symlinks=True)
    tools = home / ".cache" / "kubebooth" / "tools"
    tools.mkdir(parents=True)
    shutil.copy2(binaries.helm(), tools)
    for path in (home, *home.rglob("*")):
        os.lchown(path, 12345, 12345)
    environment = {
        "HOME": str(home),
        "KUBEBUILDER_ASSETS": str(assets),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if _is_ours(path)),
    }

    def verb(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*_AS_NOBODY, python, "-m", "kubebooth_cluster", *words],
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    try:
        made = verb("up")
        assert made.returncode == 0, made.stderr
        kubeconfig = home / ".local/state/kubebooth/clusters/demo/kubeconfig"
        script = "touch /tmp/up; id -u; sleep 600"
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "one"},
            "spec": {
                "containers": [
                    {
                        "name": "main",
                        "image": "busybox",
                        "command": ["sh", "-c", script],
                        "securityContext": {"runAsUser": 77},
                        "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/up"]}},
                    }
                ]
            },
        }
        kubectl = [str(binaries.kubectl()), "--kubeconfig", str(kubeconfig)]
        subprocess.run([*kubectl, "apply", "-f", "-"], input=json.dumps(pod), text=True, check=True)
        subprocess.run(
            [*kubectl, "wait", "--for=condition=Ready", "pod/one", "--timeout=60s"], check=True
        )
        told = subprocess.run([*kubectl, "logs", "one"], capture_output=True, check=True)
        assert told.stdout == b"77\n"
    finally:
        assert verb("clean").returncode == 0


def test_bad_words_are_refused_with_the_cure(run: Run) -> None:
    assert "python -m kubebooth_cluster up" in run("env").stderr
    assert "write it like 16Gi" in run("up", "--memory", "much").stderr
    refused = subprocess.run(
        [sys.executable, "-m", "kubebooth_cluster", "up", "--name", "../x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert "lower-case letters" in refused.stderr


def test_the_help_says_that_it_is_a_development_tool() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "kubebooth_cluster", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "development tool" in told.stdout
