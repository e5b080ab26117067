"""The table from image names to what runs on this machine; it must not know how it runs."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubebooth_cluster.errors import ClusterError

_HOST_PATH = (
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
)


@dataclass(frozen=True)
class Image:
    """What stands for an image: folders put before the PATH, the image's own settings."""

    path: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    user: int = 0
    workdir: str = "/"

    @property
    def environment(self) -> dict[str, str]:
        """The environment that a container of this image starts from."""
        path = ":".join((*self.path, *_HOST_PATH))
        return {"PATH": path, "HOME": "/", "LANG": "C.UTF-8", **self.env}


def repository(image: str) -> str:
    """The full repository name of an image, without tag and digest, as Docker reads it."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    name = head + slash + last.partition(":")[0]
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def default_table() -> dict[str, Image]:
    """The images of the product and of its chart, all from this Python environment."""
    own = (f"{sys.prefix}/bin",)
    product = {
        f"ghcr.io/kubebooth/{name}": Image(path=own, user=65532)
        for name in ("operator", "trainer", "webui")
    }
    return product | {
        "docker.io/chrislusf/seaweedfs": Image(path=own, entrypoint=("weed",)),
        "docker.io/library/python": Image(path=own, command=("python3",)),
        "docker.io/library/busybox": Image(command=("sh",)),
    }


def find_image(image: str, table_file: Path) -> Image | None:
    """What runs for `image`, or None; the file's rows come before the built-in ones.

    The file is read each time, so rows can be added while the agent runs.
    """
    name = repository(image)
    if table_file.exists():
        row = _read_table(table_file).get(name)
        if row is not None:
            return row
    return default_table().get(name)


def _read_table(path: Path) -> dict[str, Image]:
    try:
        rows: dict[str, dict[str, Any]] = json.loads(path.read_text())
        return {repository(name): _image(row) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ClusterError(
            f"{path}: {error}; it must map image names to objects with the keys path, "
            "entrypoint, command, env, user, workdir"
        ) from error


def _image(row: dict[str, Any]) -> Image:
    lists: dict[str, Any] = {
        key: tuple(str(word) for word in row[key])
        for key in ("path", "entrypoint", "command")
        if key in row
    }
    rest = {key: value for key, value in row.items() if key not in lists}
    return Image(**lists, **rest)
