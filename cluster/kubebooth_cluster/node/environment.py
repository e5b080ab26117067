"""The environment of a container; it must not know how the container is run."""

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.node.kube import Kube
from kubebooth_cluster.node.quantities import divide, parse_quantity
from kubebooth_cluster.node.settings import Object

_REFERENCE = re.compile(r"\$\$|\$\(([^()]*)\)")
_KEYED = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class ConfigError(ClusterError):
    """The kubelet's CreateContainerConfigError: an object or a key is not there."""


@dataclass(frozen=True)
class PodFacts:
    """What the downward API can tell of a pod beyond its manifest."""

    ip: str
    host_ip: str
    node_name: str


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by what is known; `$$` is a dollar, the unknown stays as it is."""

    def replace(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return known.get(found[1], found[0])

    return _REFERENCE.sub(replace, text)


def field_value(pod: Object, path: str, facts: PodFacts) -> str:
    """What `fieldRef` names. Raises ConfigError on a field that the downward API has not."""
    metadata, spec = pod["metadata"], pod["spec"]
    keyed = _KEYED.fullmatch(path)
    if keyed:
        return str((metadata.get(keyed[1]) or {}).get(keyed[2], ""))
    simple = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": facts.node_name,
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": facts.ip,
        "status.podIPs": facts.ip,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
    }
    if path in simple:
        return str(simple[path])
    if path in ("metadata.labels", "metadata.annotations"):
        pairs = metadata.get(path.removeprefix("metadata.")) or {}
        return "\n".join(f'{key}="{_quoted(value)}"' for key, value in sorted(pairs.items()))
    raise ConfigError(f"unsupported fieldPath: {path}")


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_value(container: Object, reference: Object) -> str:
    """What `resourceFieldRef` names; an absent limit is what the machine has."""
    kind, _, name = str(reference["resource"]).partition(".")
    amounts = (container.get("resources") or {}).get(kind) or {}
    if name in amounts:
        amount = parse_quantity(amounts[name])
    elif kind == "limits" and name == "cpu":
        amount = parse_quantity(os.cpu_count() or 1)
    elif kind == "limits" and name == "memory":
        amount = parse_quantity(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    else:
        amount = parse_quantity(0)
    return str(divide(amount, parse_quantity(reference.get("divisor") or 1)))


async def read_config_map(kube: Kube, namespace: str, name: str) -> dict[str, bytes] | None:
    """The keys of a ConfigMap, or None when there is none."""
    found = await kube.find(f"/api/v1/namespaces/{namespace}/configmaps/{name}")
    if found is None:
        return None
    text = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return text | _decoded(found.get("binaryData"))


async def read_secret(kube: Kube, namespace: str, name: str) -> dict[str, bytes] | None:
    """The keys of a Secret, or None when there is none."""
    found = await kube.find(f"/api/v1/namespaces/{namespace}/secrets/{name}")
    return None if found is None else _decoded(found.get("data"))


def _decoded(data: Mapping[str, str] | None) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in (data or {}).items()}


async def _keys(kube: Kube, kind: str, namespace: str, reference: Object) -> dict[str, bytes]:
    """The keys of the object that an environment refers to. Raises ConfigError."""
    read = read_secret if kind == "secret" else read_config_map
    found = await read(kube, namespace, str(reference["name"]))
    if found is None and not reference.get("optional"):
        raise ConfigError(f'{kind} "{reference["name"]}" not found')
    return found or {}


async def _referred(
    kube: Kube, pod: Object, container: Object, source: Object, facts: PodFacts
) -> str | None:
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"], facts)
    if "resourceFieldRef" in source:
        return resource_value(container, source["resourceFieldRef"])
    kind = "secret" if "secretKeyRef" in source else "configmap"
    reference = source.get("secretKeyRef") or source.get("configMapKeyRef")
    if reference is None:
        raise ConfigError(f"unsupported valueFrom: {', '.join(source)}")
    namespace = pod["metadata"]["namespace"]
    keys = await _keys(kube, kind, namespace, reference)
    key = reference["key"]
    if key in keys:
        return keys[key].decode(errors="surrogateescape")
    if reference.get("optional"):
        return None
    spelled = "Secret" if kind == "secret" else "ConfigMap"
    raise ConfigError(f"couldn't find key {key} in {spelled} {namespace}/{reference['name']}")


async def container_environment(
    kube: Kube,
    pod: Object,
    container: Object,
    *,
    facts: PodFacts,
    start: Mapping[str, str],
    links: Mapping[str, str],
) -> dict[str, str]:
    """The whole environment: the image's (`start`), Service `links`, envFrom, env.

    Raises ConfigError in the kubelet's words.
    """
    namespace = pod["metadata"]["namespace"]
    own: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        kind = "secret" if "secretRef" in source else "configmap"
        reference: Any = source.get("secretRef") or source.get("configMapRef")
        keys = await _keys(kube, kind, namespace, reference)
        for key, value in keys.items():
            own[source.get("prefix", "") + key] = value.decode(errors="surrogateescape")
    for entry in container.get("env") or ():
        name = entry["name"]
        if "valueFrom" in entry:
            value_or_none = await _referred(kube, pod, container, entry["valueFrom"], facts)
            if value_or_none is not None:
                own[name] = value_or_none
        else:
            own[name] = expand(entry.get("value", ""), {**links, **own})
    return {**start, **links, **own}


def service_links(
    services: Iterable[Object], pod: Object, *, api_host: str, api_port: int
) -> dict[str, str]:
    """The variables that tell a pod of the API server and of its namespace's Services."""
    links = {
        "KUBERNETES_SERVICE_HOST": api_host,
        "KUBERNETES_SERVICE_PORT": str(api_port),
        "KUBERNETES_SERVICE_PORT_HTTPS": str(api_port),
    }
    if pod["spec"].get("enableServiceLinks") is False:
        return links
    for service in services:
        own = service["metadata"]["namespace"] == pod["metadata"]["namespace"]
        if own and service["metadata"]["name"] != "kubernetes":
            links |= _links_of(service)
    return links


def _links_of(service: Object) -> dict[str, str]:
    ip, ports = service["spec"].get("clusterIP", "None"), service["spec"].get("ports") or []
    if ip in ("None", "") or not ports:
        return {}
    name = service["metadata"]["name"].upper().replace("-", "_")
    first = ports[0]
    links = {
        f"{name}_SERVICE_HOST": ip,
        f"{name}_SERVICE_PORT": str(first["port"]),
        f"{name}_PORT": f"{first.get('protocol', 'TCP').lower()}://{ip}:{first['port']}",
    }
    for port in ports:
        protocol, number = port.get("protocol", "TCP"), port["port"]
        stem = f"{name}_PORT_{number}_{protocol}"
        links |= {
            stem: f"{protocol.lower()}://{ip}:{number}",
            f"{stem}_PROTO": protocol.lower(),
            f"{stem}_PORT": str(number),
            f"{stem}_ADDR": ip,
        }
        if port.get("name"):
            label = port["name"].upper().replace("-", "_")
            links[f"{name}_SERVICE_PORT_{label}"] = str(number)
    return links
