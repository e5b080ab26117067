"""Programs are taken from where they are promised to be, checked, and made only once."""

import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kubebooth_cluster import binaries
from kubebooth_cluster.errors import MissingToolError
from kubebooth_cluster.fetch import FetchError
from kubebooth_cluster.gobuild import KUBERNETES_VERSION
from kubebooth_cluster.releases import ETCD_VERSION, fetch_releases

_PROGRAM = b"#!/bin/sh\necho release\n"


class Mirror:
    """Serves release files from memory and remembers what was asked for."""

    def __init__(self) -> None:
        self.files = _release_files()
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                content = mirror.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def _release_files() -> dict[str, bytes]:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    files: dict[str, bytes] = {}
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        path = f"/{KUBERNETES_VERSION}/bin/linux/{machine}/{name}"
        files[path] = _PROGRAM
        files[f"{path}.sha256"] = hashlib.sha256(_PROGRAM).hexdigest().encode()
    stem = f"etcd-{ETCD_VERSION}-linux-{machine}"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"{stem}/etcd")
        member.size = len(_PROGRAM)
        archive.addfile(member, io.BytesIO(_PROGRAM))
    files[f"/{ETCD_VERSION}/{stem}.tar.gz"] = packed.getvalue()
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    files[f"/{ETCD_VERSION}/SHA256SUMS"] = f"{digest}  {stem}.tar.gz\n".encode()
    return files


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mirror]:
    served = Mirror()
    monkeypatch.setenv("KUBEBOOTH_KUBERNETES_MIRROR", served.url)
    monkeypatch.setenv("KUBEBOOTH_ETCD_MIRROR", served.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    yield served
    served.close()


def test_release_files_are_fetched_once_even_by_two_at_a_time(mirror: Mirror) -> None:
    script = "from kubebooth_cluster.binaries import controlplane_assets as a; print(a(tell=print))"
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate()[0].splitlines() for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert told[0][-1] == told[1][-1]
    assert all(os.access(Path(told[0][-1]) / name, os.X_OK) for name in binaries.SERVERS)
    assert len(mirror.asked) == len(set(mirror.asked)) == len(mirror.files)


def test_a_release_file_with_a_wrong_checksum_is_refused_and_nothing_is_left(
    mirror: Mirror, tmp_path: Path
) -> None:
    path = next(path for path in mirror.files if path.endswith("/kube-scheduler"))
    mirror.files[path] = b"#!/bin/sh\necho other\n"
    folder = tmp_path / "draft"
    folder.mkdir()

    with pytest.raises(FetchError, match="published is"):
        fetch_releases(folder)

    assert not (folder / "kube-scheduler").exists()


def test_a_mirror_that_does_not_answer_is_given_up(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("KUBEBOOTH_ETCD_MIRROR", url)
        with pytest.raises(FetchError, match=r"no answer in 5 s|timed out"):
            fetch_releases(tmp_path)
    assert mirror.asked == []


def test_an_incomplete_assets_folder_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(MissingToolError, match=r"KUBEBUILDER_ASSETS=.* must hold etcd"):
        binaries.controlplane_assets()


def test_the_other_programs_are_there_and_helm_is_the_pinned_one() -> None:
    helm = subprocess.run([binaries.helm(), "version"], capture_output=True, text=True, check=True)
    assert f"v{binaries.HELM_VERSION}" in helm.stdout
    for program in (binaries.kubectl(), binaries.weed(), binaries.bwrap()):
        assert os.access(program, os.X_OK)


def test_a_sandbox_program_that_does_not_work_is_told_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no user namespaces here >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("kubebooth_cluster.binaries.find_spec", lambda _: None)
    with pytest.raises(MissingToolError, match=r"no user namespaces here.*apt-get install"):
        binaries.bwrap()
