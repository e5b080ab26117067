"""The text of a pod's /etc/hosts, which is the name service here; pure functions."""

from collections.abc import Iterable, Mapping

from kubebooth_cluster.node.settings import Object

_DOMAIN = "cluster.local"


def is_ready(pod: Object) -> bool:
    """Whether a pod may get a Service's connections."""
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def selected(service: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods behind a Service that can get connections, in the order of their names."""
    spec, namespace = service["spec"], service["metadata"]["namespace"]
    selector: Mapping[str, str] = spec.get("selector") or {}
    if not selector:
        return []
    every = bool(spec.get("publishNotReadyAddresses"))
    found = [
        pod
        for pod in pods
        if pod["metadata"]["namespace"] == namespace
        and (pod.get("status") or {}).get("podIP")
        and (pod.get("status") or {}).get("phase") in ("Pending", "Running")
        and selector.items() <= (pod["metadata"].get("labels") or {}).items()
        and (every or is_ready(pod))
    ]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def _names(service: Object, namespace: str) -> list[str]:
    metadata = service["metadata"]
    stem = f"{metadata['name']}.{metadata['namespace']}"
    short = [metadata["name"]] if metadata["namespace"] == namespace else []
    return [*short, stem, f"{stem}.svc", f"{stem}.svc.{_DOMAIN}"]


def _headless(service: Object, namespace: str, pods: Iterable[Object]) -> list[str]:
    lines = []
    names = _names(service, namespace)
    for pod in selected(service, pods):
        ip, host = pod["status"]["podIP"], pod["spec"].get("hostname")
        if host and pod["spec"].get("subdomain") == service["metadata"]["name"]:
            lines.append(" ".join([ip, *(f"{host}.{name}" for name in names)]))
        lines.append(" ".join([ip, *names]))
    return lines


def hosts_text(pod: Object, ip: str, services: Iterable[Object], pods: Iterable[Object]) -> str:
    """The hosts file of one pod: itself, its aliases, every Service of the cluster."""
    namespace = pod["metadata"]["namespace"]
    name = pod["spec"].get("hostname") or pod["metadata"]["name"]
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    subdomain = pod["spec"].get("subdomain")
    full = [f"{name}.{subdomain}.{namespace}.svc.{_DOMAIN}"] if subdomain else []
    lines.append(" ".join([ip, *full, name]))
    lines += [
        " ".join([alias["ip"], *alias.get("hostnames", ())])
        for alias in pod["spec"].get("hostAliases") or ()
    ]
    everyone = list(pods)
    for service in sorted(services, key=lambda one: str(one["metadata"]["uid"])):
        cluster_ip = service["spec"].get("clusterIP")
        if cluster_ip == "None":
            lines += _headless(service, namespace, everyone)
        elif cluster_ip:
            lines.append(" ".join([cluster_ip, *_names(service, namespace)]))
    return "\n".join(lines) + "\n"
