"""The bubblewrap command line of one container, from what it asks for; it starts nothing.

A container sees the machine's /usr and a few harmless parts of /etc, the Python
environment and the checkout, all read-only, and nothing else of the disk.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from kubebooth_cluster.node.environment import ConfigError, expand
from kubebooth_cluster.node.settings import Object
from kubebooth_cluster.node.volumes import Volume
from kubebooth_cluster.places import checkout_folder

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "OpenCL",
    "os-release",
    "pki",
    "protocols",
    "services",
    "ssl",
    "timezone",
    "vulkan",
)


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine at a path of the container."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True)
class Sandbox:
    """Everything that decides how a container's first process starts."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    workdir: str
    hostname: str
    user: int
    group: int
    mounts: tuple[Mount, ...]
    hidden: tuple[Path, ...]
    read_only_root: bool
    die_with_parent: bool
    with_gpus: bool = False


def bwrap_options(sandbox: Sandbox) -> list[str]:
    """The options of bwrap before `--`. Raises ConfigError on a NUL, which would split one."""
    words = [
        *("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
        *("--hostname", sandbox.hostname, "--as-pid-1", "--cap-drop", "ALL"),
        *("--uid", str(sandbox.user), "--gid", str(sandbox.group)),
        *(["--die-with-parent"] if sandbox.die_with_parent else []),
        *_root(with_gpus=sandbox.with_gpus),
        *(word for path in sandbox.hidden for word in _hide(path)),
    ]
    # Outer mounts first, so that inner ones land on top of them.
    covered = _covered_folders(sandbox.mounts)
    for mount in sorted([*sandbox.mounts, *covered], key=lambda mount: mount.target.count("/")):
        flag = "--ro-bind" if mount.read_only else "--bind"
        words += [flag, str(mount.source), mount.target]
    if covered:
        words += [word for path in sandbox.hidden for word in _hide(path)]
    if not any(mount.target.rstrip("/") == sandbox.workdir for mount in sandbox.mounts):
        words += ["--dir", sandbox.workdir]
    if sandbox.read_only_root:
        words += ["--remount-ro", "/"]
    words += ["--chdir", sandbox.workdir, "--clearenv"]
    for name, value in sandbox.environment.items():
        words += ["--setenv", name, value]
    if any("\0" in word for word in words):
        raise ConfigError("a NUL character in the environment or in a path is not allowed")
    return words


def _root(*, with_gpus: bool) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/opt", "/opt"]
    for path in _SYSTEM:
        if os.path.islink(path):
            words += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            words += ["--ro-bind", path, path]
    words += ["--perms", "0755", "--dir", "/etc"]
    for name in _ETC:
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--ro-bind-try", "/sys", "/sys"]
    for device in glob("/dev/nvidia*") if with_gpus else ():
        words += ["--dev-bind-try", device, device]
    for folder, mode in (("/tmp", "1777"), ("/var", "0755"), ("/var/tmp", "1777")):  # noqa: S108
        words += ["--perms", mode, "--dir", folder]
    words += ["--perms", "0755", "--dir", "/run", "--symlink", "/run", "/var/run"]
    for target, source in python_folders().items():
        words += ["--ro-bind", str(source), target]
    return words


def _covered_folders(mounts: Sequence[Mount]) -> list[Mount]:
    """What Python needs once more, where a volume lies over it: a checkout below /tmp, say."""
    outer = [Path(mount.target) for mount in mounts]
    return [
        Mount(source, target, read_only=True)
        for target, source in python_folders().items()
        if any(folder in Path(target).parents for folder in outer)
    ]


def _hide(path: Path) -> list[str]:
    """Cover a folder of the agent's own, should it lie below one that the pod sees."""
    seen = any(path.is_relative_to(folder) for folder in python_folders())
    return ["--tmpfs", str(path)] if seen else []


def python_folders() -> dict[str, Path]:
    """What this Python needs to run, by the path at which it must be found."""
    environment = Path(sys.prefix)
    folders = {str(checkout_folder()): checkout_folder(), str(environment): environment}
    link = environment / "bin" / "python"
    while link.is_symlink():
        link = Path(os.path.normpath(link.parent / link.readlink()))
        home = link.parent.parent
        if not home.is_relative_to("/usr") and str(home) not in folders:
            folders[str(home)] = home.resolve()
    base = Path(sys.base_prefix)
    if not base.is_relative_to("/usr"):
        folders[str(base)] = base
    return folders


def volume_mounts(
    container: Object, volumes: Mapping[str, Volume], environment: Mapping[str, str]
) -> list[Mount]:
    """The mounts that a container asks for. Raises ConfigError on a bad `subPath`."""
    mounts = []
    for wanted in container.get("volumeMounts") or ():
        volume = volumes.get(wanted["name"])
        if volume is None:
            raise ConfigError(f'volume "{wanted["name"]}" is not mounted')
        sub_path = wanted.get("subPath") or expand(wanted.get("subPathExpr", ""), environment)
        target = os.path.normpath("/" + wanted["mountPath"].lstrip("/"))
        if target == "/var/run" or target.startswith("/var/run/"):
            # /var/run is a link to /run in the sandbox, and bwrap does not follow it.
            target = target.removeprefix("/var")
        read_only = bool(wanted.get("readOnly")) or volume.read_only
        source = _sub_path(volume, sub_path) if sub_path else volume.path
        mounts.append(Mount(source, target, read_only))
    return mounts


def _sub_path(volume: Volume, sub_path: str) -> Path:
    """The part of a volume, made if missing. Raises ConfigError when it leads out of it."""
    root = volume.path.resolve()
    part = (root / sub_path).resolve()
    if not part.is_relative_to(root):
        raise ConfigError(f'failed to prepare subPath "{sub_path}": it leaves the volume')
    if not part.exists():
        if volume.read_only:
            raise ConfigError(f'subPath "{sub_path}" does not exist in a read-only volume')
        part.mkdir(parents=True)
        part.chmod(0o777)
    return part
