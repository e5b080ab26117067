"""An API server in memory: versions, owners, finalizers, server-side apply, and faults on order.

It is the operator's `Client` on one side and users, controllers and kubelets on the other. It must
not know the operator.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kubebooth_operator.client import Json, Name, Page
from kubebooth_operator.errors import Conflict, Invalid, NotFound, Unavailable
from kubebooth_operator.resources import JOBS, Resource, Resources, controller


class Crash(BaseException):
    """The operator dies here; no code of it may catch this."""


@dataclass
class Write:
    """One change that the operator made."""

    verb: str
    kind: str
    name: str


@dataclass
class Faults:
    """What goes wrong with the operator's requests; counted in writes from now."""

    crash_before: int | None = None
    """The operator dies before this write (0 is the next) happens."""
    crash_after: int | None = None
    """The operator dies after this write happened and before it knows."""
    refuse: int | None = None
    """This write is answered 503 and does not happen."""
    lose_answer: int | None = None
    """This write happens and is answered by a broken connection."""


class MemoryServer:
    """Objects with uid, resourceVersion, generation, finalizers, owners; `Client` for the
    operator. Every change is appended to `log` as `(type, resource, body)`."""

    def __init__(self, resources: Resources, now: Callable[[], datetime]) -> None:
        self.resources = resources
        self.objects: dict[tuple[Resource, Name], Json] = {}
        self.log: list[tuple[str, Resource, Json]] = []
        self.writes: list[Write] = []
        self.requests = 0
        self.faults = Faults()
        self.between: Callable[[], None] = lambda: None
        self._applied: dict[str, Json] = {}
        self._now = now
        self._version = itertools.count(1)
        self._uid = itertools.count(1)
        self._last = 0

    # --- what users and controllers do -----------------------------------------------------

    def find(self, kind: str, namespace: str, name: str) -> Json | None:
        """A copy of an object by kind, or None."""
        body = self.objects.get((self.kind(kind), (namespace, name)))
        return copy.deepcopy(body)

    def all(self, kind: str) -> list[Json]:
        """Copies of all objects of a kind, in the order of their names."""
        resource = self.kind(kind)
        found = [(name, body) for (r, name), body in self.objects.items() if r == resource]
        return [copy.deepcopy(body) for _, body in sorted(found, key=lambda item: item[0])]

    def kind(self, kind: str) -> Resource:
        """The watched resource of a kind."""
        return next(resource for resource in self.resources if resource.kind == kind)

    def put(self, kind: str, body: Mapping[str, Any]) -> Json:
        """Create an object as a user or controller; `Conflict` when the name is taken."""
        return self._put(self.kind(kind), body)

    def _put(self, resource: Resource, body: Mapping[str, Any]) -> Json:
        body = copy.deepcopy(dict(body))
        metadata = body.setdefault("metadata", {})
        metadata.setdefault("namespace", "default")
        name = (metadata["namespace"], metadata["name"])
        if (resource, name) in self.objects:
            raise Conflict(f"{resource.kind} {name} exists", code=409)
        metadata["uid"] = f"uid-{next(self._uid)}"
        metadata["generation"] = 1
        metadata["creationTimestamp"] = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
        body["apiVersion"], body["kind"] = resource.api_version, resource.kind
        return self._store("ADDED", resource, name, body)

    def edit(self, kind: str, namespace: str, name: str, change: Callable[[Json], None]) -> Json:
        """Change an object in place as a user; a changed spec raises its generation."""
        resource = self.kind(kind)
        before = self._there(resource, (namespace, name))
        after = copy.deepcopy(before)
        change(after)
        return self._changed(resource, (namespace, name), before, after)

    def set_status(self, kind: str, namespace: str, name: str, status: Mapping[str, Any]) -> Json:
        """Replace the status as a controller or kubelet."""
        return self.edit(kind, namespace, name, lambda body: body.update(status=dict(status)))

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Delete as a user: marked when it has finalizers, else gone with all that it owns."""
        self._delete(self.kind(kind), (namespace, name))

    def collect_garbage(self) -> None:
        """Delete what is owned by objects that are gone, as the garbage collector does."""
        alive = {body["metadata"]["uid"] for body in self.objects.values()}
        for (resource, name), body in tuple(self.objects.items()):
            owner = controller(body["metadata"].get("ownerReferences"))
            if owner is not None and owner["uid"] not in alive and (resource, name) in self.objects:
                self._delete(resource, name)

    # --- what the operator does ------------------------------------------------------------

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        self._request()
        return copy.deepcopy(self._there(resource, (namespace, name)))

    async def list_metadata(
        self, resource: Resource, namespace: str | None, *, limit: int, token: str = ""
    ) -> Page:
        self._request()
        items = {
            name: (body["metadata"]["uid"], body["metadata"]["resourceVersion"])
            for (r, name), body in self.objects.items()
            if r == resource and namespace in (None, name[0]) and selected(resource, body)
        }
        return Page(items, str(self._last), "")

    async def create(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> Json:
        return self._write(
            "create", resource, body["metadata"]["name"], lambda: self._put(resource, body)
        )

    async def apply(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        *,
        force: bool,
    ) -> Json:
        return self._write(
            "apply", resource, name, lambda: self._apply(resource, (namespace, name), body)
        )

    async def merge(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Mapping[str, Any],
        *,
        subresource: str = "",
    ) -> Json:
        verb = f"merge {subresource}".strip()
        return self._write(
            verb,
            resource,
            name,
            lambda: self._merge(resource, (namespace, name), patch, subresource),
        )

    async def json_patch(
        self, resource: Resource, namespace: str, name: str, patch: Sequence[Mapping[str, Any]]
    ) -> Json:
        return self._write(
            "patch", resource, name, lambda: self._json_patch(resource, (namespace, name), patch)
        )

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str | None, foreground: bool
    ) -> Json:
        # Always in the background: the weaker promise, so what holds with it holds with both.
        del foreground
        return self._write(
            "delete", resource, name, lambda: self._delete(resource, (namespace, name), uid=uid)
        )

    # --- inside ----------------------------------------------------------------------------

    def _request(self) -> None:
        self.requests += 1
        self.between()

    def _write(self, verb: str, resource: Resource, name: str, act: Callable[[], Json]) -> Json:
        self._request()
        faults = self.faults
        if _counts_down(faults, "crash_before"):
            raise Crash
        if _counts_down(faults, "refuse"):
            raise Unavailable("refused by the simulation", code=503)
        lost, dead = _counts_down(faults, "lose_answer"), _counts_down(faults, "crash_after")
        answer = act()
        self.writes.append(Write(verb, resource.kind, name))
        if dead:
            raise Crash
        if lost:
            raise Unavailable("the answer was lost by the simulation")
        return answer

    def _there(self, resource: Resource, name: Name) -> Json:
        body = self.objects.get((resource, name))
        if body is None:
            raise NotFound(f"no {resource.kind} {name}", code=404)
        return body

    def _store(self, type_: str, resource: Resource, name: Name, body: Json) -> Json:
        self._last = next(self._version)
        body["metadata"]["resourceVersion"] = str(self._last)
        self.objects[resource, name] = body
        self.log.append((type_, resource, copy.deepcopy(body)))
        return copy.deepcopy(body)

    def _changed(self, resource: Resource, name: Name, before: Json, after: Json) -> Json:
        if before == after:
            return copy.deepcopy(before)
        if before.get("spec") != after.get("spec"):
            after["metadata"]["generation"] = before["metadata"]["generation"] + 1
        metadata = after["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            return self._gone(resource, name, after)
        return self._store("MODIFIED", resource, name, after)

    def _apply(self, resource: Resource, name: Name, body: Mapping[str, Any]) -> Json:
        body = copy.deepcopy(dict(body))
        uid = body["metadata"].pop("uid", None)
        before = self.objects.get((resource, name))
        if uid is not None and (before is None or before["metadata"]["uid"] != uid):
            raise Conflict("the uid is another", code=409)
        if before is None:
            created = self._put(resource, body)
            self._applied[created["metadata"]["uid"]] = body
            return created
        after = copy.deepcopy(before)
        _prune(after, self._applied.get(before["metadata"]["uid"], {}), body)
        _overlay(after, body)
        if resource == JOBS and after["spec"].get("template") != before["spec"].get("template"):
            raise Invalid("spec.template: field is immutable", code=422)
        self._applied[before["metadata"]["uid"]] = body
        return self._changed(resource, name, before, after)

    def _merge(
        self, resource: Resource, name: Name, patch: Mapping[str, Any], subresource: str
    ) -> Json:
        before = self._there(resource, name)
        guard = patch.get("metadata") or {}
        for fact in ("uid", "resourceVersion"):
            if guard.get(fact, before["metadata"][fact]) != before["metadata"][fact]:
                raise Conflict(f"the {fact} is another", code=409)
        after = copy.deepcopy(before)
        if subresource == "status":
            after["status"] = _merged(after.get("status") or {}, patch.get("status"))
        else:
            merged = _merged(after, {k: v for k, v in patch.items() if k != "status"})
            after = {**merged, "metadata": {**merged["metadata"], "uid": before["metadata"]["uid"]}}
        return self._changed(resource, name, before, after)

    def _json_patch(
        self, resource: Resource, name: Name, patch: Sequence[Mapping[str, Any]]
    ) -> Json:
        before = self._there(resource, name)
        after = copy.deepcopy(before)
        for step in patch:
            *path, last = step["path"].strip("/").split("/")
            target: Any = after
            for part in path:
                target = target[int(part)] if isinstance(target, list) else target.get(part, {})
            _json_patch_step(target, last, step)
        return self._changed(resource, name, before, after)

    def _delete(self, resource: Resource, name: Name, *, uid: str | None = None) -> Json:
        before = self._there(resource, name)
        if uid is not None and before["metadata"]["uid"] != uid:
            raise Conflict("the uid is another", code=409)
        if before["metadata"].get("finalizers"):
            after = copy.deepcopy(before)
            at = self._now().strftime("%Y-%m-%dT%H:%M:%SZ")
            after["metadata"].setdefault("deletionTimestamp", at)
            return self._changed(resource, name, before, after)
        self._gone(resource, name, before)
        return {"kind": "Status", "status": "Success"}

    def _gone(self, resource: Resource, name: Name, body: Json) -> Json:
        self._last = next(self._version)
        body = copy.deepcopy(body)
        body["metadata"]["resourceVersion"] = str(self._last)
        del self.objects[resource, name]
        self.log.append(("DELETED", resource, copy.deepcopy(body)))
        for (r, n), child in tuple(self.objects.items()):
            owner = controller(child["metadata"].get("ownerReferences"))
            if owner is not None and owner["uid"] == body["metadata"]["uid"]:
                self._delete(r, n)
        return body


def selected(resource: Resource, body: Mapping[str, Any]) -> bool:
    labels = body["metadata"].get("labels") or {}
    wanted = dict(pair.split("=") for pair in resource.label_selector.split(",") if pair)
    return all(labels.get(label) == value for label, value in wanted.items())


def _counts_down(faults: Faults, name: str) -> bool:
    count: int | None = getattr(faults, name)
    if count is None:
        return False
    setattr(faults, name, None if count == 0 else count - 1)
    return count == 0


def _merged(there: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    merged = dict(there) if isinstance(there, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _overlay(there: Json, wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if isinstance(value, Mapping) and isinstance(there.get(key), dict):
            _overlay(there[key], value)
        else:
            there[key] = copy.deepcopy(value)


def _prune(there: Json, applied: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Remove what was applied before and is wanted no more."""
    for key, value in applied.items():
        if key not in wanted:
            there.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(there.get(key), dict):
            _prune(there[key], value, wanted[key] if isinstance(wanted[key], Mapping) else {})


def _json_patch_step(target: Any, last: str, step: Mapping[str, Any]) -> None:
    if step["op"] == "test":
        there = target[int(last)] if isinstance(target, list) else target.get(last)
        if there != step["value"]:
            raise Invalid(f"the test of {step['path']} failed", code=422)
    elif step["op"] == "add" and isinstance(target, list):
        target.append(step["value"])
    elif step["op"] == "add":
        target[last] = copy.deepcopy(step["value"])
    elif step["op"] == "remove":
        del target[int(last) if isinstance(target, list) else last]
    else:
        raise Invalid(f"{step['op']} is not simulated", code=422)
