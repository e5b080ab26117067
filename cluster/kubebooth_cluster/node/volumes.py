"""The volumes of a pod as folders on disk; it must not know how they get into a sandbox.

Raises MountError where a kubelet would say FailedMount and try again.
"""

import os
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubebooth_cluster.api import ApiError
from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.files import write_whole
from kubebooth_cluster.node.environment import (
    PodFacts,
    field_value,
    read_config_map,
    read_secret,
    resource_value,
)
from kubebooth_cluster.node.kube import Kube
from kubebooth_cluster.node.settings import Object

_TOKEN_LIFE_S = 3600
_REFRESH_AT = 0.8


class MountError(ClusterError):
    """A volume cannot be set up yet; the message is the kubelet's."""


@dataclass(frozen=True)
class Volume:
    """Where a volume is on this machine, and whether every mount of it is read-only."""

    path: Path
    read_only: bool = False


@dataclass(frozen=True)
class File:
    """One file of a volume that is made of API objects."""

    content: bytes
    mode: int


_Files = dict[str, File]


@dataclass(frozen=True)
class _Scene:
    """What every kind of volume may ask for."""

    kube: Kube
    pod: Object
    facts: PodFacts
    folder: Path

    @property
    def namespace(self) -> str:
        return str(self.pod["metadata"]["namespace"])


async def prepare_volumes(
    kube: Kube, pod: Object, *, facts: PodFacts, folder: Path
) -> dict[str, Volume]:
    """Make every volume of the pod below `folder`, or bring it up to date, by name."""
    scene = _Scene(kube, pod, facts, folder)
    return {
        volume["name"]: await _prepare(scene, volume) for volume in pod["spec"].get("volumes") or ()
    }


async def _prepare(scene: _Scene, volume: Object) -> Volume:
    name = volume["name"]
    path = scene.folder / name
    if "emptyDir" in volume:
        _make_folder(path)
        return Volume(path)
    if "hostPath" in volume:
        return Volume(_host_path(volume["hostPath"]))
    if "persistentVolumeClaim" in volume:
        return await _claimed(scene, volume["persistentVolumeClaim"])
    files = await _files(scene, volume)
    if files is None:
        raise MountError(f'MountVolume.SetUp failed for volume "{name}" : unsupported kind')
    _write_files(path, files)
    return Volume(path, read_only=True)


def _make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o777)


def _host_path(source: Object) -> Path:
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch()
    if not path.exists():
        raise MountError(f"hostPath type check failed: {path} does not exist")
    if kind.startswith("Directory") and not path.is_dir():
        raise MountError(f"hostPath type check failed: {path} is not a directory")
    return path


async def _claimed(scene: _Scene, source: Object) -> Volume:
    name = source["claimName"]
    claim = await scene.kube.find(
        f"/api/v1/namespaces/{scene.namespace}/persistentvolumeclaims/{name}"
    )
    if claim is None:
        raise MountError(f'persistentvolumeclaim "{name}" not found')
    bound = (claim.get("status") or {}).get("phase") == "Bound"
    volume_name = claim["spec"].get("volumeName")
    if not bound or not volume_name:
        raise MountError(f'persistentvolumeclaim "{name}" is not bound')
    volume = await scene.kube.get(f"/api/v1/persistentvolumes/{volume_name}")
    source_path = volume["spec"].get("hostPath") or volume["spec"].get("local")
    if source_path is None:
        raise MountError(f'persistentvolume "{volume_name}" is neither hostPath nor local')
    volume_path = _host_path({"path": source_path["path"]})
    return Volume(volume_path, read_only=bool(source.get("readOnly")))


async def _files(scene: _Scene, volume: Object) -> _Files | None:
    if "projected" in volume:
        projected = volume["projected"]
        mode = projected.get("defaultMode", 0o644)
        merged: _Files = {}
        for source in projected.get("sources") or ():
            merged |= await _source_files(scene, source, mode, volume["name"])
        return merged
    for kind in ("configMap", "secret", "downwardAPI"):
        if kind in volume:
            source = dict(volume[kind])
            if "secretName" in source:
                source["name"] = source["secretName"]
            mode = source.get("defaultMode", 0o644)
            return await _source_files(scene, {kind: source}, mode, volume["name"])
    return None


async def _source_files(scene: _Scene, source: Object, mode: int, volume_name: str) -> _Files:
    if "configMap" in source:
        keys = await read_config_map(scene.kube, scene.namespace, source["configMap"]["name"])
        return _picked("configmap", source["configMap"], keys, mode)
    if "secret" in source:
        keys = await read_secret(scene.kube, scene.namespace, source["secret"]["name"])
        return _picked("secret", source["secret"], keys, mode)
    if "downwardAPI" in source:
        return {
            item["path"]: File(_downward(scene, item).encode(), item.get("mode", mode))
            for item in source["downwardAPI"].get("items") or ()
        }
    if "serviceAccountToken" in source:
        return await _token(scene, source["serviceAccountToken"], volume_name)
    raise MountError(f"unsupported projected source: {', '.join(source)}")


def _picked(kind: str, source: Object, keys: dict[str, bytes] | None, mode: int) -> _Files:
    if keys is None:
        if source.get("optional"):
            return {}
        raise MountError(f'{kind} "{source["name"]}" not found')
    items = source.get("items")
    if not items:
        return {key: File(content, mode) for key, content in keys.items()}
    missing = [item["key"] for item in items if item["key"] not in keys]
    if missing and not source.get("optional"):
        raise MountError(f'{kind} "{source["name"]}" references non-existent key: {missing[0]}')
    return {
        item["path"]: File(keys[item["key"]], item.get("mode", mode))
        for item in items
        if item["key"] in keys
    }


def _downward(scene: _Scene, item: Object) -> str:
    if "fieldRef" in item:
        return field_value(scene.pod, item["fieldRef"]["fieldPath"], scene.facts)
    reference = item["resourceFieldRef"]
    for container in scene.pod["spec"]["containers"]:
        if container["name"] == reference.get("containerName"):
            return resource_value(container, reference)
    raise MountError(f"resourceFieldRef: no container {reference.get('containerName')!r}")


async def _token(scene: _Scene, source: Object, volume_name: str) -> _Files:
    life_s = int(source.get("expirationSeconds") or _TOKEN_LIFE_S)
    kept = scene.folder / volume_name / source["path"]
    if kept.exists() and time.time() - kept.stat().st_mtime < life_s * _REFRESH_AT:
        return {source["path"]: File(kept.read_bytes(), 0o600)}
    metadata = scene.pod["metadata"]
    spec: dict[str, Any] = {
        "expirationSeconds": life_s,
        "boundObjectRef": {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }
    if source.get("audience"):
        spec["audiences"] = [source["audience"]]
    account = scene.pod["spec"].get("serviceAccountName") or "default"
    try:
        answer = await scene.kube.post(
            f"/api/v1/namespaces/{scene.namespace}/serviceaccounts/{account}/token", {"spec": spec}
        )
    except ApiError as error:
        raise MountError(f"failed to fetch token: {error}") from error
    return {source["path"]: File(answer["status"]["token"].encode(), 0o600)}


def _write_files(folder: Path, files: _Files) -> None:
    """Make `folder` hold exactly these files, touching only those that differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for relative, file in files.items():
        path = folder / relative
        if not path.resolve().is_relative_to(folder.resolve()):
            raise MountError(f"path {relative!r} leaves the volume")
        if not path.exists() or path.read_bytes() != file.content:
            # The agent's own user reads every file back, so it keeps that right.
            write_whole(path, file.content, mode=file.mode | stat.S_IRUSR)
    for path in list(folder.rglob("*")):
        if path.is_file() and str(path.relative_to(folder)) not in files:
            path.unlink()


def remove_tree(folder: Path) -> None:
    """Remove a folder, whatever modes a pod left on what is inside."""
    for root, names, _ in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def used_bytes(folder: Path) -> int:
    """The bytes that the files below `folder` take on disk."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
