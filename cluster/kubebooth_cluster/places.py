"""Where this tool keeps things on disk; it must not know what they are."""

import os
import re
import sys
from pathlib import Path

from kubebooth_cluster.errors import ClusterError

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def _user_folder(variable: str, default: str) -> Path:
    chosen = os.environ.get(variable, "")
    return Path(chosen) if os.path.isabs(chosen) else Path.home() / default


def cache_folder() -> Path:
    """The folder for what can be made again: binaries (`~/.cache/kubebooth`)."""
    return _user_folder("XDG_CACHE_HOME", ".cache") / "kubebooth"


def cluster_folder(name: str) -> Path:
    """The folder of the cluster of that name (`~/.local/state/kubebooth/clusters/NAME`).

    Raises ClusterError when the name is no DNS label of at most 40 characters.
    """
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"--name {name!r}: use at most 40 lower-case letters, digits and inner dashes"
        )
    return _user_folder("XDG_STATE_HOME", ".local/state") / "kubebooth" / "clusters" / name


def environment_bin() -> Path:
    """The `bin` folder of the Python environment that runs this tool."""
    return Path(sys.prefix) / "bin"


def checkout_folder() -> Path:
    """The folder that holds the rooms: the root of the checkout (or of site-packages)."""
    return Path(__file__).resolve().parents[2]
