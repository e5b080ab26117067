"""Observes from the cache and acts on the API server, one object at a time; it decides nothing.

What a write answers goes into the cache at once, so that the next observation knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kubebooth_api.digests import digest_json
from kubebooth_api.runs import WorkerStatus

from kubebooth_operator.cache import Cache
from kubebooth_operator.client import Client, Json, Name
from kubebooth_operator.differences import lacks, merge_patch, without_nulls
from kubebooth_operator.doors import ChildRef, Key, Manifest, Observed, Stalled
from kubebooth_operator.errors import Conflict, Forbidden, Invalid, NotFound
from kubebooth_operator.reading import report_of
from kubebooth_operator.resources import (
    FINALIZER,
    JOBS,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    PODS,
    Resource,
    Resources,
    controller,
)

_MOST_MEMOS = 20_000


class Cluster:
    """The doors to observe and to act through."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        resources: Resources,
        *,
        worker: Callable[[Key], WorkerStatus | None] = lambda key: None,
        wake: Callable[[Key], None] = lambda key: None,
    ) -> None:
        """`worker` gives what the running worker of a key said last; `wake` is told the keys of
        others that our own writes concern, because those send us no event."""
        self._client = client
        self._cache = cache
        self._resources = resources
        self._worker = worker
        self._wake = wake
        self._settled: dict[str, tuple[str, str]] = {}

    def observe(self, key: Key) -> Observed | None:
        """All that is known of a key; None when its object is gone."""
        resource, name = self._resources.parent(key.plural), (key.namespace, key.name)
        parent = self._cache.get(resource, name)
        if parent is None:
            return None
        uid = parent["metadata"]["uid"]
        children = self._cache.children(resource, uid, name)
        jobs = {body["metadata"]["uid"] for kind, body in children if kind == JOBS}
        reports = {
            body["metadata"]["name"]: report
            for kind, body in children
            # Anyone may label a pod; only a pod of a Job of ours speaks for the parent.
            if kind == PODS and _owner_uid(body) in jobs and (report := report_of(body))
        }
        return Observed(
            parent=parent,
            children=tuple(body for _, body in children),
            reports=reports,
            sessions=self._cache.sessions_of(resource, name),
            worker=self._worker(key),
        )

    async def apply(self, parent: Manifest, manifest: Manifest) -> str:
        """Make one child as in `manifest`; gives `created`, `applied`, `kept` or `unchanged`.

        `kept` is a child whose difference the server does not allow to be applied, such as the
        pod template of a Job. Raises `Stalled("NameConflict")` when an object of that name is
        not the parent's: it is never adopted; `ChildInvalid` or `ChildForbidden` when the server
        refuses to make it. Raises `ApiError`.
        """
        resource = self._resources.of_kind(manifest["apiVersion"], manifest["kind"])
        if resource is None:
            raise Stalled("UnknownChild", f"{manifest['kind']} is no kind of child that is watched")
        wanted = _owned(parent, manifest)
        name: Name = (wanted["metadata"]["namespace"], wanted["metadata"]["name"])
        there = self._cache.get(resource, name)
        if there is None:
            return await self._create(parent, resource, name, wanted)
        _refuse_foreign(parent, resource, there)
        if there["metadata"].get("deletionTimestamp") or not lacks(wanted, there):
            return "unchanged"
        if self._settled.get(there["metadata"]["uid"]) == (
            digest_json(wanted),
            _fingerprint(there),
        ):
            return "unchanged"
        return await self._update(resource, name, wanted, there)

    async def delete(self, reference: ChildRef) -> bool:
        """Delete a child as the reference says; False when it is gone or already going."""
        resource = self._resources.of_kind(reference.api_version, reference.kind)
        if resource is None:
            raise Stalled("UnknownChild", f"{reference.kind} is no kind of child that is watched")
        name: Name = (reference.namespace, reference.name)
        entry = self._cache.entry(resource, name)
        uid = reference.uid or (entry.uid if entry else None)
        there = entry.load() if entry is not None and entry.uid == uid else None
        if there is not None and there["metadata"].get("deletionTimestamp"):
            # Its pods may take minutes to end: asking again and again would not hurry them.
            return False
        try:
            answer = await self._client.delete(
                resource, *name, uid=uid, foreground=reference.foreground
            )
        except (NotFound, Conflict):
            # A successor of the same name has another uid, and is not ours to delete.
            if uid is not None:
                self._cache.drop(resource, name, uid=uid)
            return False
        if answer.get("kind") == resource.kind and answer["metadata"].get("deletionTimestamp"):
            self._remember(resource, answer)
        elif uid is not None:
            self._cache.drop(resource, name, uid=uid)
        return True

    async def write_status(self, key: Key, parent: Manifest, status: Manifest) -> Manifest | None:
        """Make the status as given, in one request; gives the object as it is then, or None
        when the status is so already.

        Raises `Conflict` when the object has changed since it was observed.
        """
        patch = merge_patch(without_nulls(status), parent.get("status") or {})
        if not patch:
            return None
        metadata = parent["metadata"]
        guard = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        answer = await self._client.merge(
            self._resources.parent(key.plural),
            key.namespace,
            key.name,
            {"metadata": guard, "status": patch},
            subresource="status",
        )
        self._remember(self._resources.parent(key.plural), answer, by=key)
        return answer

    async def set_finalizer(self, key: Key, parent: Manifest, *, present: bool) -> bool:
        """Add or remove our finalizer; False when it is so already.

        Others' finalizers are left alone. Raises `Conflict` when the object has changed since it
        was observed.
        """
        resource = self._resources.parent(key.plural)
        finalizers: list[str] = parent["metadata"].get("finalizers") or []
        if (FINALIZER in finalizers) == present:
            return False
        if present and parent["metadata"].get("deletionTimestamp"):
            return False
        version = parent["metadata"]["resourceVersion"]
        try:
            answer = await self._client.json_patch(
                resource,
                key.namespace,
                key.name,
                [
                    {"op": "test", "path": "/metadata/resourceVersion", "value": version},
                    _finalizer_change(finalizers, present=present),
                ],
            )
        except Invalid as error:
            raise Conflict(f"the object changed before its finalizer: {error}") from error
        self._remember(resource, answer, by=key)
        return True

    async def refresh(self, key: Key) -> None:
        """Ask the API server for the object itself: the cache was behind."""
        await self.refresh_object(self._resources.parent(key.plural), (key.namespace, key.name))

    async def refresh_object(self, resource: Resource, name: Name) -> Json | None:
        """Bring one object of the cache up to date; gives it, or what it was when it is gone."""
        before = self._cache.get(resource, name)
        try:
            after = await self._client.get(resource, *name)
        except NotFound:
            if before is not None:
                self._cache.drop(resource, name, uid=before["metadata"]["uid"])
            return before
        self._remember(resource, after)
        return after

    async def _create(self, parent: Manifest, resource: Resource, name: Name, wanted: Json) -> str:
        # The cache holds only what has our label: a foreign object of the name is not in it.
        try:
            there = await self._client.get(resource, *name)
        except NotFound:
            try:
                answer = await self._client.apply(resource, *name, wanted, force=False)
            except (Invalid, Forbidden) as error:
                raise _refused(resource, name, error) from error
            _refuse_foreign(parent, resource, answer)
            self._remember(resource, answer)
            self._settle(resource, name, wanted)
            return "created"
        _refuse_foreign(parent, resource, there)
        self._remember(resource, there)
        if not lacks(wanted, there):
            return "unchanged"
        return await self._update(resource, name, wanted, there)

    async def _update(self, resource: Resource, name: Name, wanted: Json, there: Manifest) -> str:
        uid = there["metadata"]["uid"]
        # The uid makes the server refuse when the name was given to another object meanwhile.
        guarded = {**wanted, "metadata": {**wanted["metadata"], "uid": uid}}
        outcome = "applied"
        try:
            self._remember(resource, await self._client.apply(resource, *name, guarded, force=True))
        except Invalid:
            outcome = "kept"
        self._settle(resource, name, wanted)
        return outcome

    def _settle(self, resource: Resource, name: Name, wanted: Json) -> None:
        """The server may write a value in its own way: do not apply the same again for that."""
        there = self._cache.get(resource, name)
        if there is None:
            return
        if len(self._settled) >= _MOST_MEMOS:
            self._settled.clear()
        self._settled[there["metadata"]["uid"]] = (digest_json(wanted), _fingerprint(there))

    def _remember(
        self, resource: Resource, answer: Mapping[str, Any], *, by: Key | None = None
    ) -> None:
        """Take an answer into the cache. `by` is the object that is being worked on: it knows."""
        metadata = answer["metadata"]
        concerned = self._cache.concerned(resource, answer)
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            name: Name = (metadata["namespace"], metadata["name"])
            changed = self._cache.drop(resource, name, uid=metadata["uid"])
        else:
            changed = self._cache.put(resource, answer)
        if changed and resource in self._resources.custom:
            for key in concerned:
                if key != by:
                    self._wake(key)


def _owned(parent: Manifest, manifest: Manifest) -> Json:
    """`manifest` with the parent as its controller and the label that we watch by."""
    metadata = dict(manifest["metadata"])
    metadata.setdefault("namespace", parent["metadata"]["namespace"])
    metadata["labels"] = {**(metadata.get("labels") or {}), MANAGED_BY_LABEL: MANAGED_BY}
    metadata["ownerReferences"] = [
        {
            "apiVersion": parent["apiVersion"],
            "kind": parent["kind"],
            "name": parent["metadata"]["name"],
            "uid": parent["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    return {**manifest, "metadata": metadata}


def _refused(resource: Resource, name: Name, error: Invalid | Forbidden) -> Stalled:
    """What only somebody else can cure: a wrong field, a quota, a policy, a right."""
    reason = "ChildInvalid" if isinstance(error, Invalid) else "ChildForbidden"
    return Stalled(reason, f"{resource.kind} {name[1]!r} is refused by the API server: {error}")


def _refuse_foreign(parent: Manifest, resource: Resource, there: Manifest) -> None:
    if _owner_uid(there) == parent["metadata"]["uid"]:
        return
    name = there["metadata"]["name"]
    raise Stalled(
        "NameConflict",
        f"{resource.kind} {name!r} exists and does not belong to this {parent['kind']}: it is left"
        " alone; delete or rename it, or give this object another name",
    )


def _owner_uid(body: Manifest) -> str | None:
    owner = controller(body["metadata"].get("ownerReferences"))
    return None if owner is None else owner.get("uid")


def _fingerprint(body: Manifest) -> str:
    """Digest of all but status and bookkeeping: it changes when somebody edits the object."""
    metadata = body["metadata"]
    kept = {key: metadata.get(key) for key in ("labels", "annotations", "ownerReferences")}
    rest = {k: v for k, v in body.items() if k not in {"metadata", "status", "apiVersion", "kind"}}
    return digest_json({"metadata": kept, **rest})


def _finalizer_change(finalizers: list[str], *, present: bool) -> dict[str, Any]:
    if not present:
        return {"op": "remove", "path": f"/metadata/finalizers/{finalizers.index(FINALIZER)}"}
    if not finalizers:
        return {"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]}
    return {"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER}
