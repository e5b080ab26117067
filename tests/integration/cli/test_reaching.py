"""The store is reached by name, by ClusterIP or through kubectl, and faults name their cure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kubebooth_cli.__main__ import run
from kubebooth_cluster.ports import free_ports

from tests.integration.cli.desk import Desk, pictures, plain

BIN = Path(sys.prefix) / "bin"

# Stands for kubectl where no kubelet serves port-forward: it forwards for real, to a fixed target.
FORWARDER = """\
#!{python}
import re, socket, sys, threading
words = " ".join(sys.argv[1:])
assert re.match(r"port-forward --namespace booth service/kubebooth-store :8333", words), words
def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    target.close()
listener = socket.create_server(("127.0.0.1", 0))
print(f"Forwarding from 127.0.0.1:{{listener.getsockname()[1]}} -> 8333", flush=True)
while True:
    near, _ = listener.accept()
    far = socket.create_connection(("127.0.0.1", {target}))
    threading.Thread(target=pump, args=(near, far), daemon=True).start()
    threading.Thread(target=pump, args=(far, near), daemon=True).start()
"""
FAILING = "#!/bin/sh\necho 'error: unable to forward port because pod is not running' >&2\nexit 1\n"


def _kubectl(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "kubectl"
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_service_is_reached_through_kubectl_from_a_laptop(
    bare_desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = bare_desk.weed.endpoint.rpartition(":")[2]
    forwarder = FORWARDER.format(python=sys.executable, target=target)
    _kubectl(tmp_path, forwarder, monkeypatch)
    bare_desk.install(endpoint="http://kubebooth-store.booth.svc:8333")
    done = bare_desk.run("upload", str(pictures(tmp_path / "dog")), "--session", "far")
    assert done.code == 0, done.err
    prefix = f"sessions/{bare_desk.namespace}/far/uploads"
    assert len(list(bare_desk.store().list(prefix))) == 4


def test_a_store_out_of_reach_tells_what_was_tried_and_the_cure(
    bare_desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _kubectl(tmp_path, FAILING, monkeypatch)
    bare_desk.install(endpoint="http://kubebooth-store.booth.svc:8333")
    refused = bare_desk.run("upload", str(pictures(tmp_path / "dog")), "--session", "far")
    assert refused.code == 1
    told = plain(refused.err)
    assert "pod is not running" in told
    assert "kubectl -n booth port-forward service/kubebooth-store 8333" in told


def test_an_endpoint_of_ones_own_is_taken_as_it_is(bare_desk: Desk, tmp_path: Path) -> None:
    bare_desk.install(endpoint="http://kubebooth-store.booth.svc:8333")
    words = ("upload", str(pictures(tmp_path / "dog")), "--session", "own")
    assert bare_desk.run(*words, "--endpoint", bare_desk.weed.url).code == 0


def test_the_public_address_of_the_chart_comes_before_the_service(
    bare_desk: Desk, tmp_path: Path
) -> None:
    bare_desk.install(
        endpoint="http://kubebooth-store.booth.svc:8333", publicEndpoint=bare_desk.weed.url
    )
    assert bare_desk.run("upload", str(pictures(tmp_path / "d")), "--session", "p").code == 0


def test_a_missing_kubeconfig_is_one_sentence_and_a_cure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert run(["status"]) == 1
    told = capsys.readouterr().err
    assert "no usable kubeconfig" in told
    assert "set KUBECONFIG or --kubeconfig" in told
    assert "Traceback" not in told


def test_a_broken_kubeconfig_is_no_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    for text in ("a: [", "", "just text", "{}", "current-context: x\ncontexts: []\n"):
        broken.write_text(text)
        assert run(["status", "--kubeconfig", str(broken)]) == 1, text
        told = capsys.readouterr().err
        assert "kubeconfig" in told, text
        assert "fault of ours" not in told, text


def test_an_unknown_context_is_named(bare_desk: Desk) -> None:
    refused = bare_desk.run("status", "--context", "elsewhere")
    assert refused.code == 1
    assert "'elsewhere'" in refused.err


def test_a_silent_api_server_is_named(
    capsys: pytest.CaptureFixture[str], bare_desk: Desk, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    served = bare_desk.plane.control_plane.layout.api_port
    text = bare_desk.plane.kubeconfig.read_text()
    away = tmp_path / "away"
    away.write_text(text.replace(f":{served}", f":{port}"))
    assert run(["status", "--kubeconfig", str(away)]) == 1
    told = plain(capsys.readouterr().err)
    assert f":{port} does not answer" in told
    assert "Connection refused" in told
    assert "is the cluster running" in told


def test_a_store_that_is_away_is_named(bare_desk: Desk, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    bare_desk.install(endpoint=f"http://127.0.0.1:{port}")
    words = ("upload", str(pictures(tmp_path / "dog")), "--session", "away")
    refused = bare_desk.run(*words)
    assert refused.code == 1
    assert f"127.0.0.1:{port} is away" in plain(refused.err)


def test_kubectl_runs_it_as_a_plugin(bare_desk: Desk) -> None:
    bare_desk.create("plugged")
    done = subprocess.run(
        [str(BIN / "kubectl"), "kubebooth", "-n", bare_desk.namespace, "status"],
        env={
            "PATH": f"{BIN}{os.pathsep}/usr/bin:/bin",
            "KUBECONFIG": str(bare_desk.plane.kubeconfig),
            "HOME": "/nonexistent",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "plugged" in done.stdout
