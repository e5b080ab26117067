"""Runs the operator in a thread or as processes against a real API server; knows no test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kubebooth_cluster.testing import RealApi, eventually, found
from kubebooth_operator.application import Application
from kubebooth_operator.http import HttpClient
from kubebooth_operator.kinds import Kind
from kubebooth_operator.login import Login, from_kubeconfig
from kubebooth_operator.metrics import Metrics
from kubebooth_operator.settings import Settings

from tests.unit.operator_core.tiny import tiny_plan

PLURAL = "probes"
KINDS = {PLURAL: Kind(PLURAL, "Probe", tiny_plan)}
CRD = Path(__file__).parent / "probe-crd.yaml"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Client(HttpClient):
    """Lets a test into the middle of requests."""

    def __init__(self, login: Callable[[], Login], metrics: Metrics) -> None:
        super().__init__(login, metrics)
        self.before_apply: Callable[[Mapping[str, Any]], float] = lambda body: 0.0
        """Called with what is applied; gives the seconds to wait before."""
        self.before_merge: Callable[[], None] = lambda: None

    async def apply(self, *words: Any, **options: Any) -> dict[str, Any]:
        """See `HttpClient`."""
        await asyncio.sleep(self.before_apply(words[3]))
        return await super().apply(*words, **options)

    async def merge(self, *words: Any, **options: Any) -> dict[str, Any]:
        """See `HttpClient`."""
        if options.get("subresource") == "status":
            await asyncio.to_thread(self.before_merge)
        return await super().merge(*words, **options)


class Operator:
    """The operator in a thread of this process."""

    def __init__(self, login: Callable[[], Login], settings: Settings) -> None:
        self._login = login
        self._settings = settings
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self.fault: BaseException | None = None
        self.application: Application
        self.client: Client

    def __enter__(self) -> Operator:
        self._thread.start()
        assert self._ready.wait(30)
        eventually(lambda: self.fault or self.leads(), what="leader", timeout_s=60)
        assert self.fault is None, self.fault
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self.application.stop)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def leads(self) -> bool:
        """Whether its cache is complete and it holds the Lease."""
        return self.metric("kubebooth_leader") == 1

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, summed over the labels that are not given."""
        return sum(
            sample.value
            for family in self.application.metrics.registry.collect()
            for sample in family.samples
            if sample.name == name
            and all(sample.labels.get(label) == value for label, value in labels.items())
        )

    def writes(self) -> float:
        """Requests so far that change something, but for the Lease and events."""
        verbs = ("create", "apply", "patch", "patch_status", "delete")
        return sum(
            self.metric("kubebooth_api_requests_total", verb=verb)
            - self.metric("kubebooth_api_requests_total", verb=verb, resource="leases")
            - self.metric("kubebooth_api_requests_total", verb=verb, resource="events")
            for verb in verbs
        )

    def _main(self) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            self.application = Application(
                self._settings, KINDS, self._login, client_of=self._client_of
            )
            self._ready.set()
            await self.application.run()
            # aiohttp closes TLS connections some turns of the loop after its session is closed.
            await asyncio.sleep(0.3)

        try:
            asyncio.run(run())
        except BaseException as fault:  # noqa: BLE001
            self.fault = fault

    def _client_of(self, login: Callable[[], Login], metrics: Metrics) -> Client:
        self.client = Client(login, metrics)
        return self.client


def operator(
    api: RealApi, namespace: str, *, login: Callable[[], Login] | None = None, **settings: Any
) -> Operator:
    """An operator for one namespace, with its Lease there."""
    chosen: dict[str, Any] = {
        "namespace": namespace,
        "watch_namespaces": (namespace,),
        "identity": f"test-{os.getpid()}",
        "listen": "127.0.0.1",
        "port": free_port(),
        "resync_s": 3600.0,
        "lease_duration_s": 6.0,
    }
    return Operator(
        login or (lambda: from_kubeconfig(api.kubeconfig)), Settings(**chosen | settings)
    )


class Probes:
    """Objects of the tiny kind in one namespace, as a user sees them."""

    def __init__(self, api: RealApi, namespace: str) -> None:
        self._api = api.api
        self.namespace = namespace
        self.collection = f"/apis/kubebooth.io/v1alpha1/namespaces/{namespace}/{PLURAL}"

    def create(self, name: str, **spec: Any) -> Any:
        body = {"apiVersion": "kubebooth.io/v1alpha1", "kind": "Probe", "spec": spec}
        return self._api.post(self.collection, {**body, "metadata": {"name": name}})

    def edit(self, name: str, **spec: Any) -> Any:
        return self._api.merge(f"{self.collection}/{name}", {"spec": spec})

    def get(self, name: str) -> Any:
        return found(self._api, f"{self.collection}/{name}")

    def delete(self, name: str) -> None:
        self._api.delete(f"{self.collection}/{name}")

    def config_map(self, name: str) -> Any:
        return found(self._api, f"/api/v1/namespaces/{self.namespace}/configmaps/{name}")

    def value(self, name: str) -> Any:
        """What its ConfigMap says."""
        there = self.config_map(name)
        return None if there is None else there["data"].get("value")

    def ready(self, name: str, value: int) -> bool:
        """Whether ConfigMap and status say the value, for the newest generation."""
        there = self.get(name)
        status = (there or {}).get("status") or {}
        return bool(
            there
            and self.value(name) == str(value)
            and status.get("phase") == "Ready"
            and status.get("message") == f"value {value}"
            and status.get("observedGeneration") == there["metadata"]["generation"]
        )

    def wait_ready(self, name: str, value: int, *, timeout_s: float = 60) -> None:
        eventually(
            lambda: self.ready(name, value),
            what=f"value {value} at {name}: {self.get(name)}",
            timeout_s=timeout_s,
        )


class Proxy:
    """A TCP proxy in front of the API server that can be cut."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._whole = True
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection and let no new one through."""
        with self._lock:
            self._whole = False
            for one in tuple(self._open):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        """Let connections through again."""
        self._whole = True

    def close(self) -> None:
        """Cut, and listen no more."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._whole:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(source)
        source.close()


@contextlib.contextmanager
def process(
    kubeconfig: Path, *, log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The operator as a process of its own, killed in the end."""
    chosen = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("KUBE", "POD_"))},
        "KUBECONFIG": str(kubeconfig),
        "POD_IP": "127.0.0.1",
        **environment,
    }
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "kubebooth_operator"], env=chosen, stdout=output, stderr=output
        )
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()
            running.wait(30)
