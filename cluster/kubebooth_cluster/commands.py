"""The verbs of the command line: up, down, clean, status, env; printing is all they add."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kubebooth_cluster import binaries
from kubebooth_cluster.controlplane import COMPONENTS, ControlPlane
from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.node.launch import kill_leftovers
from kubebooth_cluster.node.quantities import parse_quantity
from kubebooth_cluster.node.volumes import remove_tree
from kubebooth_cluster.nodeagent import NodeAgent
from kubebooth_cluster.places import cluster_folder


@dataclass(frozen=True)
class Offer:
    """What the nodes of a cluster offer to pods; None is what the machine has."""

    nodes: int = 1
    gpus: int = 1
    cpus: int | None = None
    memory: str | None = None

    @property
    def memory_bytes(self) -> int | None:
        """The memory in bytes. Raises ClusterError when it is no quantity."""
        if self.memory is None:
            return None
        try:
            return int(parse_quantity(self.memory))
        except ValueError as error:
            raise ClusterError(f"--memory: {error}; write it like 16Gi") from error


def say(text: str) -> None:
    """One line of what is going on, at once."""
    print(f"cluster: {text}", flush=True)


def _agents(plane: ControlPlane) -> list[NodeAgent]:
    nodes = plane.folder / "nodes"
    names = sorted(folder.name for folder in nodes.iterdir()) if nodes.exists() else []
    return [NodeAgent(plane, name=name) for name in names]


def _timed(what: str, act: Callable[[], object]) -> None:
    began = time.monotonic()
    act()
    say(f"{what} ({time.monotonic() - began:.1f} s)")


def obtain() -> None:
    """Find, fetch or build every program that a cluster needs, and print where each is."""
    print(f"control plane  {binaries.controlplane_assets(tell=say)}")
    print(f"bwrap          {binaries.bwrap(tell=say)}")
    print(f"helm           {binaries.helm(tell=say)}")
    print(f"kubectl        {binaries.kubectl()}")
    print(f"weed           {binaries.weed()}")


def up(name: str, offer: Offer) -> None:
    """Start what does not run of the cluster `name` and wait until its nodes are ready."""
    plane, memory_bytes = ControlPlane(cluster_folder(name)), offer.memory_bytes
    say(f"starting {name!r} in {plane.folder}: some 10 s once its programs are here")
    binaries.bwrap(tell=say)
    binaries.helm(tell=say)
    binaries.controlplane_assets(tell=say)
    _timed("control plane ready", plane.start)
    for number in range(1, offer.nodes + 1):
        agent = NodeAgent(
            plane,
            name=f"node-{number}",
            gpus=offer.gpus,
            cpus=offer.cpus,
            memory_bytes=memory_bytes,
        )
        _timed(f"{agent.name} ready", agent.start)
    say(f'use it: eval "$(python -m kubebooth_cluster env --name {name})"')


def down(name: str) -> None:
    """Stop every pod, node and part of the control plane; what they wrote stays."""
    plane = ControlPlane(cluster_folder(name))
    if not plane.folder.exists():
        say(f"there is no {name!r}")
        return

    def stop() -> None:
        for agent in _agents(plane):
            agent.stop()
        kill_leftovers(plane.folder)
        plane.stop()

    _timed(f"{name!r} stopped", stop)


def clean(name: str) -> None:
    """Stop the cluster and remove its folder."""
    down(name)
    folder = cluster_folder(name)
    if folder.exists():
        remove_tree(folder)
        say(f"{folder} removed")


def status(name: str) -> bool:
    """Print what runs; whether all of it does."""
    plane = ControlPlane(cluster_folder(name))
    alive = {component: plane.process(component) for component in COMPONENTS}
    alive |= {agent.name: agent.process for agent in _agents(plane)}
    for part, process in alive.items():
        print(f"{part:<26}{f'pid {process.pid}' if process else 'not running'}")
    return all(alive.values()) and len(alive) > len(COMPONENTS)


def env(name: str) -> None:
    """Print shell lines that point kubectl, helm and the product's own tools at the cluster."""
    plane = ControlPlane(cluster_folder(name))
    if not plane.kubeconfig.exists():
        raise ClusterError(f"there is no {name!r} yet: python -m kubebooth_cluster up")
    values: dict[str, Path] = {
        "KUBECONFIG": plane.kubeconfig,
        "KUBEBOOTH_KUBECTL": binaries.kubectl(),
        "KUBEBOOTH_HELM": binaries.helm(),
    }
    for key, value in values.items():
        print(f"export {key}={shlex.quote(str(value))}")
