"""Last-seen objects, kept small, with their children; it decides nothing and asks nobody.

Streams, answers to our own writes and full lists all end here. Whatever the order in which they
come, a newer object is never replaced by an older one and a deleted one never comes back.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubebooth_operator.client import Json, Name
from kubebooth_operator.doors import Key
from kubebooth_operator.resources import (
    API_VERSION,
    CONFIG_MAPS,
    JOBS,
    OWNER_LABELS,
    PODS,
    Resource,
    Resources,
    controller,
    label_value,
    sessions_named,
)

_MOST_TOMBSTONES = 20_000
_MOST_REFERENCES = 64
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


Label = tuple[str, str, str]
"""Kind, namespace and label value of a parent."""


@dataclass(slots=True)
class Entry:
    """One object: a few facts to find and compare it by, and its JSON."""

    uid: str
    version: int | None
    """resourceVersion; None when the server's versions are no numbers."""
    owner: str | None
    """UID of its controller."""
    parent: Label | None
    """Parent by our label, for pods."""
    refers: tuple[str, ...]
    """Sessions of the namespace that one of our own objects takes a model of."""
    phase: str
    text: bytes

    def load(self) -> Json:
        """A fresh copy of the object."""
        loaded: Json = json.loads(self.text)
        return loaded


@dataclass(frozen=True)
class Differences:
    """How a full list differs from the cache."""

    unseen: tuple[Name, ...]
    """Objects that the cache lacks or knows only in an older version."""
    ghosts: tuple[Name, ...]
    """Objects in the cache that are gone."""


class Cache:
    """All last-seen objects of the watched resources. One event loop uses it."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._sessions = resources.of_kind(API_VERSION, "DreamboothSession")
        self._objects: dict[Resource, dict[Name, Entry]] = {r: {} for r in resources}
        self._children: dict[str, set[tuple[Resource, Name]]] = {}
        self._labelled: dict[Label, set[Name]] = {}
        self._referrers: dict[Name, set[tuple[Resource, Name]]] = {}
        self._long_names: dict[Label, str] = {}
        self._jobs: dict[str, Name] = {}
        self._tombstones: OrderedDict[str, int | None] = OrderedDict()
        self._phases: dict[str, Counter[str]] = {r.plural: Counter() for r in resources}

    def put(self, resource: Resource, body: Mapping[str, Any]) -> bool:
        """Remember an object. Gives whether it is new or newer than what is known."""
        metadata = body["metadata"]
        name: Name = (metadata["namespace"], metadata["name"])
        uid, version = metadata["uid"], _number(metadata.get("resourceVersion"))
        if self._is_buried(uid, version):
            return False
        known = self._objects[resource].get(name)
        if known is not None and known.version is not None and version is not None:
            if version == known.version and uid == known.uid:
                return False
            if version < known.version:
                return False
        if known is not None:
            self._remove(resource, name, known)
        self._insert(resource, name, _entry(resource, body, uid=uid, version=version))
        return True

    def drop(self, resource: Resource, name: Name, *, uid: str, version: str | None = None) -> bool:
        """Forget an object. Gives whether it was known.

        With `version` it left our labels or the cluster then, and anything newer is remembered
        again; without, it is known to be deleted and its uid never comes back.
        """
        gone_at = _number(version)
        self._bury(uid, gone_at)
        known = self._objects[resource].get(name)
        if known is None or known.uid != uid:
            return False
        if gone_at is not None and known.version is not None and known.version > gone_at:
            return False
        self._remove(resource, name, known)
        return True

    def get(self, resource: Resource, name: Name) -> Json | None:
        """A fresh copy of an object, without what is never read such as `managedFields`."""
        entry = self._objects[resource].get(name)
        return None if entry is None else entry.load()

    def entry(self, resource: Resource, name: Name) -> Entry | None:
        """The facts of an object, unparsed."""
        return self._objects[resource].get(name)

    def names(self, resource: Resource) -> Iterator[Name]:
        """Every known object of a resource."""
        return iter(tuple(self._objects[resource]))

    def count(self, resource: Resource) -> int:
        """How many objects of a resource are known."""
        return len(self._objects[resource])

    def phases(self, plural: str) -> Mapping[str, int]:
        """How many objects of a resource print each phase."""
        return {phase: count for phase, count in self._phases[plural].items() if count}

    def children(self, resource: Resource, uid: str, parent: Name) -> list[tuple[Resource, Json]]:
        """What the object of `uid` controls, and its Jobs' pods, in the order of their names.

        Pods with the parent's label whose Job is already gone are among them.
        """
        found = set(self._children.get(uid, ()))
        for kind, name in tuple(found):
            if kind == JOBS:
                found |= self._children.get(self._objects[JOBS][name].uid, set())
        label = (resource.kind, parent[0], label_value(parent[1]))
        for name in self._labelled.get(label, ()):
            owner = self._objects[PODS][name].owner
            if owner is not None and owner not in self._jobs:
                found.add((PODS, name))
        ordered = sorted(found, key=lambda item: (item[0].plural, item[1]))
        return [(kind, self._objects[kind][name].load()) for kind, name in ordered]

    def sessions_of(self, resource: Resource, name: Name) -> dict[str, Json]:
        """Sessions that an object takes a model of, directly or through other sessions."""
        found: dict[str, Json] = {}
        if self._sessions is None:
            return found
        sessions = self._objects[self._sessions]
        entry = self._objects[resource].get(name)
        left = list(entry.refers) if entry is not None else []
        while left and len(found) < _MOST_REFERENCES:
            session = left.pop()
            there = sessions.get((name[0], session))
            if there is None or session in found:
                continue
            found[session] = there.load()
            left.extend(there.refers)
        return found

    def concerned(self, resource: Resource, body: Mapping[str, Any]) -> list[Key]:
        """All keys to reconcile when `body` changes: its own or its parent's first, then those
        that own it or take a model of it."""
        key = self.parent_of(resource, body)
        if key is None or resource.api_version != API_VERSION:
            return [] if key is None else [key]
        owner = self._owner_of(body)
        name: Name = (key.namespace, key.name)
        keys = [key, *([owner] if owner is not None else [])]
        if resource is self._sessions:
            keys += [Key(r.plural, *n) for r, n in self._referrers.get(name, ())]
        return list(dict.fromkeys(keys))

    def parent_of(self, resource: Resource, body: Mapping[str, Any]) -> Key | None:
        """The key to reconcile when `body` changes; None when it is nobody's."""
        metadata = body["metadata"]
        namespace = metadata["namespace"]
        if resource.api_version == API_VERSION:
            return Key(resource.plural, namespace, metadata["name"])
        owned = self._owner_of(body)
        if owned is not None:
            return owned
        owner = controller(metadata.get("ownerReferences"))
        if owner is None:
            return None
        job = self._jobs.get(owner.get("uid", ""))
        if job is not None:
            return self.parent_of(JOBS, self._objects[JOBS][job].load())
        label = _label(metadata)
        custom = self._resources.of_kind(API_VERSION, label[0]) if label is not None else None
        if label is None or custom is None:
            return None
        return Key(custom.plural, namespace, self._long_names.get(label, label[2]))

    def _owner_of(self, body: Mapping[str, Any]) -> Key | None:
        """The object of ours that controls `body`."""
        metadata = body["metadata"]
        owner = controller(metadata.get("ownerReferences"))
        if owner is None:
            return None
        custom = self._resources.of_kind(owner.get("apiVersion", ""), owner.get("kind", ""))
        if custom is None or custom.api_version != API_VERSION:
            return None
        return Key(custom.plural, metadata["namespace"], owner["name"])

    def compare(
        self,
        resource: Resource,
        listed: Mapping[Name, tuple[str, str]],
        *,
        version: str,
        namespace: str | None = None,
    ) -> Differences:
        """Compare with a full list: `listed` maps names to uid and resourceVersion, `version` is
        the list's own resourceVersion, `namespace` its scope."""
        known = self._objects[resource]
        unseen = tuple(
            name for name, facts in listed.items() if self.is_unseen(resource, name, facts)
        )
        as_of = _number(version)
        ghosts = tuple(
            name
            for name, entry in known.items()
            if namespace in (None, name[0])
            and (name not in listed or listed[name][0] != entry.uid)
            # What was created after the list was made is no ghost.
            and (as_of is None or entry.version is None or entry.version <= as_of)
        )
        return Differences(unseen=unseen, ghosts=ghosts)

    def is_unseen(self, resource: Resource, name: Name, facts: tuple[str, str]) -> bool:
        """Whether the cache lacks an object of that uid and resourceVersion or a newer one."""
        uid, text = facts
        entry = self._objects[resource].get(name)
        version = _number(text)
        if self._is_buried(uid, version):
            return False
        if entry is None:
            return True
        if version is None or entry.version is None:
            return entry.uid != uid
        return entry.version < version

    def _insert(self, resource: Resource, name: Name, entry: Entry) -> None:
        self._objects[resource][name] = entry
        self._phases[resource.plural][entry.phase] += 1
        if resource == JOBS:
            self._jobs[entry.uid] = name
        if entry.owner is not None:
            self._children.setdefault(entry.owner, set()).add((resource, name))
        if entry.parent is not None:
            self._labelled.setdefault(entry.parent, set()).add(name)
        for session in entry.refers:
            self._referrers.setdefault((name[0], session), set()).add((resource, name))
        if resource.api_version == API_VERSION and label_value(name[1]) != name[1]:
            self._long_names[resource.kind, name[0], label_value(name[1])] = name[1]

    def _remove(self, resource: Resource, name: Name, entry: Entry) -> None:
        del self._objects[resource][name]
        self._phases[resource.plural][entry.phase] -= 1
        if resource == JOBS:
            self._jobs.pop(entry.uid, None)
        if entry.owner is not None:
            _discard(self._children, entry.owner, (resource, name))
        if entry.parent is not None:
            _discard(self._labelled, entry.parent, name)
        for session in entry.refers:
            _discard(self._referrers, (name[0], session), (resource, name))

    def _is_buried(self, uid: str, version: int | None) -> bool:
        if uid not in self._tombstones:
            return False
        gone_at = self._tombstones[uid]
        return gone_at is None or version is None or version <= gone_at

    def _bury(self, uid: str, gone_at: int | None) -> None:
        self._tombstones[uid] = gone_at
        if len(self._tombstones) > _MOST_TOMBSTONES:
            self._tombstones.popitem(last=False)


def _entry(resource: Resource, body: Mapping[str, Any], *, uid: str, version: int | None) -> Entry:
    metadata = body["metadata"]
    owner = controller(metadata.get("ownerReferences"))
    phase = (body.get("status") or {}).get("phase") or ""
    return Entry(
        uid=uid,
        version=version,
        owner=None if owner is None else owner.get("uid"),
        parent=_label(metadata) if resource == PODS else None,
        refers=sessions_named(body) if resource.api_version == API_VERSION else (),
        phase=sys.intern(phase) if isinstance(phase, str) else "",
        text=json.dumps(_trimmed(resource, body), separators=(",", ":")).encode(),
    )


def _label(metadata: Mapping[str, Any]) -> Label | None:
    """The parent that a pod's labels name."""
    labels = metadata.get("labels") or {}
    for kind, key in OWNER_LABELS.items():
        if key in labels:
            return kind, metadata["namespace"], labels[key]
    return None


def _trimmed(resource: Resource, body: Mapping[str, Any]) -> Json:
    """Without what is big and never read: memory follows the number of objects."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    annotations = metadata.get("annotations")
    if annotations and _LAST_APPLIED in annotations:
        metadata["annotations"] = {k: v for k, v in annotations.items() if k != _LAST_APPLIED}
    trimmed = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
    trimmed["metadata"] = metadata
    if resource == CONFIG_MAPS and controller(metadata.get("ownerReferences")) is None:
        # Anyone may label a ConfigMap: a megabyte that is nobody's child is not kept.
        trimmed.pop("data", None)
        trimmed.pop("binaryData", None)
    if resource == PODS:
        spec = body.get("spec") or {}
        trimmed["spec"] = {key: spec[key] for key in ("nodeName",) if key in spec}
    return trimmed


def _number(version: str | None) -> int | None:
    return int(version) if version is not None and version.isascii() and version.isdigit() else None


def _discard(index: dict[Any, set[Any]], key: Any, member: Any) -> None:
    members = index.get(key)
    if members is None:
        return
    members.discard(member)
    if not members:
        del index[key]
