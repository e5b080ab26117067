"""The official release files of Kubernetes and etcd; it must not know where binaries are kept."""

import os
import platform
import stat
import tarfile
import time
from pathlib import Path

from kubebooth_cluster.fetch import FetchError, download, read_small
from kubebooth_cluster.gobuild import KUBERNETES_VERSION

ETCD_VERSION = "v3.6.8"
KUBERNETES_MIRROR = "https://dl.k8s.io"
ETCD_MIRROR = "https://github.com/etcd-io/etcd/releases/download"

_SERVERS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
_PROBE_S = 5.0
_SILENCE_S = 20.0


def _machine() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def _digest_of(text: str, name: str) -> str:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 1 or (words and words[-1].lstrip("*") == name):
            return words[0]
    raise FetchError(f"no published sha256 of {name}")


def _executable(path: Path) -> None:
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _fetch_etcd(folder: Path, digests: str, archive: str, url: str) -> None:
    packed = folder / archive
    download(f"{url}/{archive}", packed, sha256=_digest_of(digests, archive), timeout_s=_SILENCE_S)
    with tarfile.open(packed) as archive_file:
        member = archive_file.extractfile(f"{archive.removesuffix('.tar.gz')}/etcd")
        if member is None:
            raise FetchError(f"{archive}: no etcd inside")
        (folder / "etcd").write_bytes(member.read())
    packed.unlink()
    _executable(folder / "etcd")


def fetch_releases(folder: Path) -> None:
    """Fill `folder` with the four programs, each checked against its published SHA-256.

    `KUBEBOOTH_KUBERNETES_MIRROR` and `KUBEBOOTH_ETCD_MIRROR` name other servers of the
    same files. Raises FetchError within 10 s when a server does not answer.
    """
    kubernetes = os.environ.get("KUBEBOOTH_KUBERNETES_MIRROR", KUBERNETES_MIRROR).rstrip("/")
    etcd = os.environ.get("KUBEBOOTH_ETCD_MIRROR", ETCD_MIRROR).rstrip("/")
    base = f"{kubernetes}/{KUBERNETES_VERSION}/bin/linux/{_machine()}"
    archive = f"etcd-{ETCD_VERSION}-linux-{_machine()}.tar.gz"
    # Both servers are asked for their digests before the first large file.
    deadline = time.monotonic() + 9
    etcd_digests = read_small(f"{etcd}/{ETCD_VERSION}/SHA256SUMS", timeout_s=_PROBE_S)
    digests = {
        name: read_small(
            f"{base}/{name}.sha256", timeout_s=max(0.5, min(_PROBE_S, deadline - time.monotonic()))
        )
        for name in _SERVERS
    }
    _fetch_etcd(folder, etcd_digests, archive, f"{etcd}/{ETCD_VERSION}")
    for name in _SERVERS:
        target = folder / name
        digest = _digest_of(digests[name], name)
        download(f"{base}/{name}", target, sha256=digest, timeout_s=_SILENCE_S)
        _executable(target)
