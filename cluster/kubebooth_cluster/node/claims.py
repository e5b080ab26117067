"""The StorageClass `standard`: a folder of this machine for every claim that asks for one."""

import asyncio
import logging
from pathlib import Path

from kubebooth_cluster.api import ApiError
from kubebooth_cluster.node.kube import Kube, Unreachable
from kubebooth_cluster.node.settings import Object
from kubebooth_cluster.node.volumes import remove_tree

log = logging.getLogger("kubebooth.node")

STORAGE_CLASS = "standard"
PROVISIONER = "kubebooth.io/local-folder"

_SELECTED = "volume.kubernetes.io/selected-node"
_BY = "pv.kubernetes.io/provisioned-by"
_NODE = "kubebooth.io/node"


def storage_class() -> Object:
    """The default class; volumes are made where the first pod of a claim is to run."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def wants_volume(claim: Object, node_name: str) -> bool:
    """Whether this node is to make a volume for the claim."""
    annotations = claim["metadata"].get("annotations") or {}
    return (
        claim["spec"].get("storageClassName") == STORAGE_CLASS
        and not claim["spec"].get("volumeName")
        and "deletionTimestamp" not in claim["metadata"]
        and annotations.get(_SELECTED) == node_name
    )


def persistent_volume(claim: Object, node_name: str, path: Path) -> Object:
    """The volume for a claim: the folder `path` of this node."""
    metadata, spec = claim["metadata"], claim["spec"]
    requirement = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node_name]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": f"pvc-{metadata['uid']}",
            "annotations": {_BY: PROVISIONER, _NODE: node_name},
        },
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": STORAGE_CLASS,
            "volumeMode": "Filesystem",
            "hostPath": {"path": str(path)},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "nodeAffinity": {
                "required": {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
            },
        },
    }


def is_released(volume: Object, node_name: str) -> bool:
    """Whether the volume is this node's and its claim is gone."""
    annotations = volume["metadata"].get("annotations") or {}
    return (
        annotations.get(_BY) == PROVISIONER
        and annotations.get(_NODE) == node_name
        and (volume.get("status") or {}).get("phase") == "Released"
        and volume["spec"].get("persistentVolumeReclaimPolicy") == "Delete"
    )


class Provisioner:
    """Makes and removes the folders behind claims."""

    def __init__(self, kube: Kube, *, node_name: str, folder: Path) -> None:
        """The folders of claims are below `folder`."""
        self._kube = kube
        self._node_name = node_name
        self._folder = folder
        self._queue: asyncio.Queue[tuple[str, Object]] = asyncio.Queue()

    def claim_seen(self, what: str, claim: Object) -> None:
        """A claim was made or changed."""
        if what == "SET" and wants_volume(claim, self._node_name):
            self._queue.put_nowait(("make", claim))

    def volume_seen(self, what: str, volume: Object) -> None:
        """A volume was made or changed."""
        if what == "SET" and is_released(volume, self._node_name):
            self._queue.put_nowait(("remove", volume))

    async def run(self) -> None:
        """Make the class, then serve claims for ever."""
        await self._declare()
        while True:
            verb, item = await self._queue.get()
            try:
                await (self._make(item) if verb == "make" else self._remove(item))
            except (Unreachable, OSError) as error:
                log.info("volume of %s waits: %s", item["metadata"]["name"], error)
                await asyncio.sleep(1)
                self._queue.put_nowait((verb, item))
            except ApiError as error:
                log.info("volume of %s: %s", item["metadata"]["name"], error)

    async def _declare(self) -> None:
        while True:
            try:
                await self._kube.post("/apis/storage.k8s.io/v1/storageclasses", storage_class())
            except ApiError:
                return
            except Unreachable:
                await asyncio.sleep(1)
            else:
                return

    async def _make(self, claim: Object) -> None:
        path = self._folder / f"pvc-{claim['metadata']['uid']}"
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o777)
        body = persistent_volume(claim, self._node_name, path)
        await self._kube.post("/api/v1/persistentvolumes", body)
        log.info("volume=%s made", path.name)

    async def _remove(self, volume: Object) -> None:
        path = self._folder / volume["metadata"]["name"]
        await asyncio.to_thread(remove_tree, path)
        await self._kube.delete(f"/api/v1/persistentvolumes/{path.name}")
        log.info("volume=%s removed", path.name)
