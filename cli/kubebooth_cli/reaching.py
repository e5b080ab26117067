"""From a Service address, which only the cluster knows, to one that this machine can reach.

Tried in order: the name itself (inside the cluster), the Service's ClusterIP (on a node), a
`kubectl port-forward` for as long as the command runs (anywhere else).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from kubebooth_cli.cluster import Cluster, Where
from kubebooth_cli.errors import CliError
from kubebooth_cli.locating import Place

_SERVICE = re.compile(r"^([a-z0-9-]+)\.([a-z0-9-]+)\.svc(\.[a-z0-9.-]+)?$")
_FORWARDING = re.compile(r"^Forwarding from 127\.0\.0\.1:(\d+) ")
_TRY_S = 1.5
_FORWARD_S = 15.0


@contextlib.contextmanager
def reachable(place: Place, cluster: Cluster | None, where: Where) -> Iterator[str | None]:
    """An endpoint that answers from here. Raises `CliError` with what was tried and the cure."""
    endpoint = place.endpoint
    parts = _parsed(endpoint) if endpoint else None
    service = _SERVICE.match(parts.hostname or "") if parts else None
    if parts is None or service is None or cluster is None or place.given:
        _check(parts)
        yield endpoint
        return
    name, namespace = service[1], service[2]
    port = _port(parts)
    if _answers(parts.hostname or "", port):
        yield endpoint
        return
    address = _cluster_ip(cluster, name, namespace)
    if address and _answers(address, port):
        yield _at(parts, address, port)
        return
    with _forwarded(name, namespace, port, where) as local:
        yield _at(parts, "127.0.0.1", local)


def _parsed(endpoint: str) -> SplitResult:
    try:
        parts = urlsplit(endpoint)
        if parts.scheme in {"http", "https"} and parts.hostname and _port(parts):
            return parts
    except ValueError:
        pass
    raise CliError(
        f"{endpoint!r} is no address of a store", "write http://host:port or https://host"
    )


def _check(parts: SplitResult | None) -> None:
    """Say at once that nobody listens, which the store itself would try again for a minute."""
    if parts is None or not parts.hostname or _is_proxied(parts):
        return
    if not _answers(parts.hostname, _port(parts)):
        raise CliError(
            f"the store {parts.geturl()} is away: nobody answers there",
            "is it running? Try again, or name another address with --endpoint",
        )


def _is_proxied(parts: SplitResult) -> bool:
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _at(parts: SplitResult, host: str, port: int) -> str:
    return parts._replace(netloc=f"{host}:{port}").geturl()


def _answers(host: str, port: int) -> bool:
    """Whether somebody accepts a connection soon; a name server that is silent counts as no."""
    done: list[bool] = []

    def attempt() -> None:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=_TRY_S):
            done.append(True)

    worker = threading.Thread(target=attempt, daemon=True)
    worker.start()
    worker.join(2 * _TRY_S)
    return bool(done)


def _cluster_ip(cluster: Cluster, name: str, namespace: str) -> str | None:
    """The Service's address; None where there is none or its namespace may not be read."""
    try:
        service = cluster.get(cluster.path("services", name, namespace=namespace))
    except CliError:
        return None
    address = str(service.get("spec", {}).get("clusterIP") or "")
    return address if address not in {"", "None"} else None


@contextlib.contextmanager
def _forwarded(name: str, namespace: str, port: int, where: Where) -> Iterator[int]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise _out_of_reach(name, namespace, port, "kubectl is not on the PATH")
    words = [kubectl, "port-forward", "--namespace", namespace, f"service/{name}", f":{port}"]
    if where.kubeconfig:
        words.append(f"--kubeconfig={where.kubeconfig}")
    if where.context:
        words.append(f"--context={where.context}")
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield _local_port(process, name, namespace, port)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.communicate()


def _local_port(process: subprocess.Popen[str], name: str, namespace: str, port: int) -> int:
    """The port kubectl chose, read from its first line."""
    silent = threading.Timer(_FORWARD_S, process.kill)
    silent.start()
    try:
        line = process.stdout.readline() if process.stdout else ""
    finally:
        silent.cancel()
    found = _FORWARDING.match(line)
    if found is None:
        process.kill()
        told = process.stderr.read().strip() if process.stderr else ""
        raise _out_of_reach(
            name, namespace, port, told.splitlines()[-1] if told else "it is silent"
        )
    return int(found[1])


def _out_of_reach(name: str, namespace: str, port: int, detail: str) -> CliError:
    return CliError(
        f"the store {name}.{namespace}.svc:{port} cannot be reached from here: not by name, not by"
        f" its ClusterIP, and kubectl port-forward failed ({detail})",
        f"run `kubectl -n {namespace} port-forward service/{name} {port}` and give"
        f" --endpoint http://127.0.0.1:{port}, or name a public address with --endpoint",
    )
