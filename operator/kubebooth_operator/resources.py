"""Which kinds of objects the operator watches and how their URLs are built; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kubebooth_api.digests import digest_json, short

GROUP = "kubebooth.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FINALIZER = f"{GROUP}/purge"
FIELD_MANAGER = "kubebooth"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "kubebooth"
SESSION_LABEL = f"{GROUP}/session"
CONVERSION_LABEL = f"{GROUP}/conversion"
OWNER_LABELS = {"DreamboothSession": SESSION_LABEL, "ModelConversion": CONVERSION_LABEL}
"""Label that names the parent on every child and pod, by the parent's kind; it finds the parent of
a pod whose Job is gone."""
_LONGEST_LABEL = 63


@dataclass(frozen=True, eq=False)
class Resource:
    """One kind of object of the Kubernetes API; all of ours live in namespaces.

    There is one of each: they are compared by identity, which a cache of thousands notices.
    """

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    kind: str
    label_selector: str = ""
    """Only objects with these labels are watched and listed."""

    @property
    def api_version(self) -> str:
        """`apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str = "") -> str:
        """URL path of the collection (of all namespaces without one) or of an object."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        where = f"/namespaces/{namespace}" if namespace else ""
        what = f"/{name}" if name else ""
        return f"{root}{where}/{self.plural}{what}{f'/{subresource}' if subresource else ''}"


_OURS = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
JOBS = Resource("batch", "v1", "jobs", "Job", _OURS)
PODS = Resource("", "v1", "pods", "Pod", _OURS)
CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap", _OURS)
EVENTS = Resource("", "v1", "events", "Event")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")

CHILDREN = (JOBS, PODS, CONFIG_MAPS)
"""Kinds of children that are watched beside the custom resources."""


def label_value(name: str) -> str:
    """An object's name as a label value; cut and with a digest where it is too long."""
    if len(name) <= _LONGEST_LABEL:
        return name
    return f"{name[:50].rstrip('.-')}-{short(digest_json(name), 10)}"


def custom(plural: str, kind: str) -> Resource:
    """One of our own kinds."""
    return Resource(GROUP, VERSION, plural, kind)


class Resources:
    """Every watched resource, found by plural or by kind."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        """`kinds` maps the plural of each custom resource to its kind."""
        self.custom = tuple(custom(plural, kind) for plural, kind in kinds.items())
        self._by_kind = {(r.api_version, r.kind): r for r in self}
        self._custom_by_plural = {r.plural: r for r in self.custom}

    def __iter__(self) -> Iterator[Resource]:
        # Children come first: a parent must not be judged before its children are known.
        yield from CHILDREN
        yield from self.custom

    def parent(self, plural: str) -> Resource:
        """The custom resource of a plural. Raises `KeyError`."""
        return self._custom_by_plural[plural]

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        """The watched resource of a kind, if it is one."""
        return self._by_kind.get((api_version, kind))


def sessions_named(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Sessions whose model one of our objects asks for; what is malformed names none."""
    spec = body.get("spec")
    if not isinstance(spec, Mapping):
        return ()
    loras = spec.get("mergeLoras")
    sources = [
        _inner(spec.get("baseModel"), "source"),
        spec.get("source"),
        spec.get("vae"),
        *(_inner(lora, "source") for lora in (loras if isinstance(loras, list) else ())),
    ]
    names = [_inner(_inner(source, "session"), "name") for source in sources]
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def _inner(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def controller(references: Iterable[Mapping[str, Any]] | None) -> Mapping[str, Any] | None:
    """The owner reference of the controller among `metadata.ownerReferences`, if any."""
    for reference in references or ():
        if reference.get("controller") is True:
            return reference
    return None
