"""From a Service address, which only the cluster knows, to one that this machine can reach.

The name itself answers inside the cluster and the Service's ClusterIP on a node; anywhere else
`kubectl port-forward` runs for as long as the command does.
"""

from __future__ import annotations

import contextlib
import queue
import re
import shutil
import socket
import subprocess
import threading
import time
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
    hosts = [parts.hostname or "", _cluster_ip(cluster, name, namespace)]
    host = _answering([host for host in hosts if host], port)
    if host:
        yield _at(parts, host, port)
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
    if not _answering([parts.hostname], _port(parts)):
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


def _answering(hosts: list[str], port: int) -> str:
    """The first of some hosts that accepts a connection, or the empty text when none does soon.

    They are tried at once: a name server that is silent must not hold up the address that works.
    """
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def attempt(host: str) -> None:
        try:
            socket.create_connection((host, port), timeout=_TRY_S).close()
        except OSError:
            answers.put("")
            return
        answers.put(host)

    for host in hosts:
        threading.Thread(target=attempt, args=(host,), daemon=True).start()
    deadline = time.monotonic() + 2 * _TRY_S
    with contextlib.suppress(queue.Empty):
        for _ in hosts:
            host = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            if host:
                return host
    return ""


def _cluster_ip(cluster: Cluster, name: str, namespace: str) -> str:
    """The Service's address; empty where there is none or its namespace may not be read."""
    try:
        service = cluster.get(cluster.path("services", name, namespace=namespace))
    except CliError:
        return ""
    address = str(service.get("spec", {}).get("clusterIP") or "")
    return "" if address == "None" else address


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
