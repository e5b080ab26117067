"""One operator process under measurement and the sessions it looks after; it judges nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml
from kubebooth_operator.login import from_kubeconfig

ROOT = Path(__file__).parents[1]
NAMESPACE = "default"
COLLECTION = f"/apis/kubebooth.io/v1alpha1/namespaces/{NAMESPACE}/dreamboothsessions"
_TICKS = os.sysconf("SC_CLK_TCK")


class Replica:
    """An operator as a process of its own, with its metrics."""

    def __init__(self, kubeconfig: Path, name: str, log: Path, **settings: str) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self.name = name
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("KUBE", "POD_"))},
            "KUBECONFIG": str(kubeconfig),
            "POD_NAMESPACE": NAMESPACE,
            "POD_NAME": name,
            "POD_IP": "127.0.0.1",
            "KUBEBOOTH_PORT": str(self.port),
            "KUBEBOOTH_STORE_ENDPOINT": "http://127.0.0.1:9",
            "KUBEBOOTH_STORE_BUCKET": "kubebooth",
            **settings,
        }
        self._log = log
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kubebooth_operator"],
                env=self._environment,
                stdout=output,
                stderr=output,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(30)

    def cpu_s(self) -> float:
        """CPU seconds so far, user and system."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / _TICKS

    def rss_mb(self, *, peak: bool = False) -> float:
        """Resident memory in MB, now or at its highest."""
        field = "VmHWM" if peak else "VmRSS"
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / 1e6
        raise LookupError(field)

    def metrics(self) -> dict[str, float]:
        """Every sample by its name with labels; empty while nobody answers."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/metrics", timeout=10
            ) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            return {}
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def total(self, name: str, *with_labels: str) -> float:
        """A metric, summed over all samples that have these `label="value"` pairs."""
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == name and all(pair in sample for pair in with_labels)
        )

    def writes(self) -> float:
        """Requests so far that change something, but for the Lease's."""
        every = self.metrics()
        return sum(
            value
            for sample, value in every.items()
            if sample.startswith("kubebooth_api_requests_total")
            and not any(word in sample for word in ('verb="get"', 'verb="list"', '"leases"'))
        )

    def requests(self) -> float:
        """All requests so far but for the Lease's."""
        return self.total("kubebooth_api_requests_total") - self.total(
            "kubebooth_api_requests_total", 'resource="leases"'
        )

    def wait(
        self,
        what: str,
        probe: Callable[[], bool],
        *,
        timeout_s: float = 1800,
        pause_s: float = 0.5,
    ) -> float:
        """Seconds until the probe is true. Raises `TimeoutError`, also when the process ended."""
        began = time.monotonic()
        while not probe():
            if self.process.poll() is not None:
                raise TimeoutError(f"the operator ended; see {self._log}")
            if time.monotonic() - began > timeout_s:
                raise TimeoutError(f"no {what} after {timeout_s:g} s; see {self._log}")
            time.sleep(pause_s)
        return time.monotonic() - began


def suspended_session(name: str) -> dict[str, Any]:
    """The quickstart, suspended: a whole spec, and no pods."""
    body: dict[str, Any] = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text())
    body["spec"]["suspend"] = True
    body["metadata"] = {"name": name, "namespace": NAMESPACE}
    return body


def create_sessions(kubeconfig: Path, names: Iterable[str], *, at_once: int = 16) -> None:
    """Create suspended sessions, some at a time. Raises `RuntimeError` when one is refused."""
    login = from_kubeconfig(kubeconfig)
    text = json.dumps(suspended_session("NAME"))

    async def one(session: aiohttp.ClientSession, gate: asyncio.Semaphore, name: str) -> None:
        async with (
            gate,
            session.post(login.server + COLLECTION, data=text.replace("NAME", name)) as a,
        ):
            if a.status != 201:
                raise RuntimeError(f"{name}: {a.status}: {await a.text()}")

    async def all_of_them() -> None:
        headers = {"Content-Type": "application/json"}
        token = login.bearer()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        connector = aiohttp.TCPConnector(ssl=login.tls(), limit=at_once)
        gate = asyncio.Semaphore(at_once)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            await asyncio.gather(*(one(session, gate, name) for name in names))

    asyncio.run(all_of_them())
