"""Starts, kills and stops the process of a node agent; it must not know what it does."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from kubebooth_cluster import pki, processes
from kubebooth_cluster.api import ApiError
from kubebooth_cluster.binaries import bwrap
from kubebooth_cluster.controlplane import ControlPlane
from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.files import read_json, write_json
from kubebooth_cluster.node.launch import kill_leftovers
from kubebooth_cluster.node.settings import Settings
from kubebooth_cluster.places import checkout_folder
from kubebooth_cluster.processes import ProcessId


class NodeAgent:
    """One node of a cluster, in a process of its own; its folder is `nodes/NAME` of the cluster."""

    def __init__(
        self,
        control_plane: ControlPlane,
        *,
        name: str = "node-1",
        die_with_parent: bool = False,
        **settings: Any,
    ) -> None:
        """More `settings` are fields of `node.settings.Settings`, such as `gpus`."""
        self.control_plane = control_plane
        self.name = name
        self.folder = control_plane.folder / "nodes" / name
        self.log = control_plane.log(f"node-{name}")
        self._die_with_parent = die_with_parent
        self._more = settings

    @property
    def images_file(self) -> Path:
        """JSON of more image rows, read at every start of a container (see `node.images`)."""
        return self.folder / "images.json"

    @property
    def process(self) -> ProcessId | None:
        """The agent's process, if it is alive."""
        record = read_json(self.folder / "process.json")
        if record is None:
            return None
        process = ProcessId(**record)
        return process if processes.is_alive(process) else None

    def start(self, *, timeout_s: float = 60) -> None:
        """Start the agent, unless it runs, and wait until its node is ready.

        Raises ClusterError with the end of its log.
        """
        if self.process is None:
            self._launch()
        self.wait_ready(timeout_s=timeout_s)

    def _launch(self) -> None:
        plane = self.control_plane
        self.folder.mkdir(parents=True, exist_ok=True)
        pki.make_certificate(
            plane.pki_folder,
            f"node-{self.name}",
            common_name=f"system:node:{self.name}",
            names=["127.0.0.1", self.name],
        )
        settings = Settings(
            name=self.name,
            folder=self.folder,
            kubeconfig=plane.kubeconfig_of("node-agent"),
            pki=plane.pki_folder,
            pod_prefix=plane.layout.pod_prefix,
            bwrap=bwrap(),
            **self._more,
        )
        kept = dataclasses.asdict(settings)
        words = {
            key: str(value) if isinstance(value, Path) else value for key, value in kept.items()
        }
        write_json(self.folder / "settings.json", words)
        process = processes.start(
            [sys.executable, "-m", "kubebooth_cluster.node", self.folder / "settings.json"],
            log=self.log,
            folder=checkout_folder() / "cluster",
            die_with_parent=self._die_with_parent,
        )
        write_json(self.folder / "process.json", vars(process))

    def wait_ready(self, *, timeout_s: float = 60) -> None:
        """Wait until the scheduler may use the node. Raises ClusterError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process is None:
                raise ClusterError(f"the node agent ended: {processes.tail(self.log)}")
            if self._is_ready():
                return
            time.sleep(0.1)
        raise ClusterError(f"node {self.name} is not ready after {timeout_s:g} s; see {self.log}")

    def _is_ready(self) -> bool:
        process = self.process
        registered = read_json(self.folder / "registered.json") or {}
        # The Node may still look ready from the life before.
        if process is None or registered.get("pid") != process.pid:
            return False
        try:
            node = self.control_plane.api(timeout_s=5).get(f"/api/v1/nodes/{self.name}")
        except (ApiError, OSError):
            return False
        conditions = (node.get("status") or {}).get("conditions") or ()
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        return ready and not node["spec"].get("taints")

    def kill(self) -> None:
        """SIGKILL the agent alone, as a crash would; pods run on unless told otherwise."""
        process = self.process
        if process is not None:
            processes.kill(process)

    def stop(self) -> None:
        """End the agent and every process of its pods."""
        process = self.process
        if process is not None:
            processes.stop(process, grace_s=5)
        kill_leftovers(self.folder)
