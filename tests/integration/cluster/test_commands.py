"""The command line brings a cluster up, finds it again, and leaves nothing behind."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubebooth_cluster import binaries
from kubebooth_cluster.node.launch import leftovers
from kubebooth_cluster.testing import eventually, short_folder

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
