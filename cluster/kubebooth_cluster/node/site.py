"""What the containers of one pod share: its object, its folder, its volumes, its node."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kubebooth_cluster.node.environment import PodFacts
from kubebooth_cluster.node.events import Events
from kubebooth_cluster.node.kube import Kube
from kubebooth_cluster.node.settings import Object, Settings
from kubebooth_cluster.node.volumes import Volume


class Devices:
    """The node's `nvidia.com/gpu`, handed out by number to containers."""

    def __init__(self, count: int) -> None:
        self._free = set(range(count))
        self._held: dict[str, tuple[int, ...]] = {}

    def hold(self, owner: str, numbers: Iterable[int]) -> None:
        """Note that `owner` has these already."""
        self._held[owner] = tuple(numbers)
        self._free -= set(self._held[owner])

    def take(self, owner: str, count: int) -> tuple[int, ...] | None:
        """`count` devices for `owner`, the same ones each time; None when there are too few."""
        if owner not in self._held:
            if count > len(self._free):
                return None
            self.hold(owner, sorted(self._free)[:count])
        return self._held[owner]

    def release(self, prefix: str) -> None:
        """Take back what all owners with this prefix hold."""
        for owner in [owner for owner in self._held if owner.startswith(prefix)]:
            self._free |= set(self._held.pop(owner))


@dataclass
class Site:
    """Everything that a container of a pod needs to know of its surroundings."""

    kube: Kube
    settings: Settings
    events: Events
    devices: Devices
    services: Callable[[], Iterable[Object]]
    changed: Callable[[], None]
    pod: Object
    facts: PodFacts
    folder: Path
    volumes: dict[str, Volume] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return str(self.pod["metadata"]["uid"])

    @property
    def full_name(self) -> str:
        """The pod as the kubelet's messages spell it."""
        metadata = self.pod["metadata"]
        return f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"

    @property
    def restart_policy(self) -> str:
        """Always, OnFailure or Never."""
        return str(self.pod["spec"].get("restartPolicy") or "Always")
