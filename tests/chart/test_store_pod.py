"""The commands of the store's pod work as written, on the real server, and survive being killed."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from kubebooth_cluster import binaries, processes
from kubebooth_cluster.ports import free_ports
from kubebooth_cluster.processes import ProcessId
from kubebooth_cluster.testing import eventually, short_folder
from kubebooth_store import Store, open_store
from minio import Minio
from minio.error import S3Error

from tests.chart.helm import of_kind, one, pod_of, render

PORTS = ("s3", "master", "volume", "filer", "admin")


class StorePod:
    """The two containers as processes: their arguments are the chart's, only folders differ."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "data").mkdir()
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        objects = render(*(f"store.bundled.ports.{n}={p}" for n, p in self.ports.items()))
        server = one(objects, "Secret", "kubebooth-store-config")["data"]
        (folder / "s3.json").write_bytes(base64.b64decode(server["s3.json"]))
        session = next(
            s["data"]
            for s in of_kind(objects, "Secret")
            if s["metadata"]["name"] == "kubebooth-store"
        )
        self.access_key = base64.b64decode(session["accessKey"]).decode()
        self.secret_key = base64.b64decode(session["secretKey"]).decode()
        store = one(objects, "StatefulSet", "kubebooth-store")
        self._commands = [container["command"] for container in pod_of(store)["containers"]]
        self._running: list[ProcessId] = []
        self.address = ""

    def start(self, address: str) -> None:
        self.address = address
        places = {
            "/data": str(self._folder / "data"),
            "/etc/seaweedfs": str(self._folder),
            "$(POD_IP)": address,
        }
        for number, command in enumerate(self._commands):
            words = []
            for word in command:
                for old, new in places.items():
                    word = word.replace(old, new)
                words.append(word)
            assert words[0] == "weed"
            log = self._folder / f"{number}.log"
            self._running.append(
                processes.start([binaries.weed(), *words[1:]], log=log, die_with_parent=True)
            )
        eventually(self._answers, what=f"store; {processes.tail(self._folder / '1.log')}")

    def _answers(self) -> bool:
        try:
            return bool(self.client().bucket_exists("kubebooth"))
        except (urllib3.exceptions.HTTPError, S3Error):
            return False

    def store(self) -> Store:
        """The store as workers open it: what fails for a moment is tried again."""
        return open_store(
            "s3://kubebooth",
            endpoint=f"http://{self.address}:{self.ports['s3']}",
            access_key=self.access_key,
            secret_key=self.secret_key,
        )

    def client(self, access_key: str = "", secret_key: str = "") -> Minio:
        return Minio(
            f"{self.address}:{self.ports['s3']}",
            access_key=access_key or self.access_key,
            secret_key=secret_key or self.secret_key,
            secure=False,
            http_client=urllib3.PoolManager(retries=False, timeout=5),
        )

    def kill(self) -> None:
        for process in self._running:
            processes.kill(process)
        self._running.clear()


@pytest.fixture
def pod() -> Iterator[StorePod]:
    for folder in short_folder():
        store = StorePod(folder)
        try:
            yield store
        finally:
            store.kill()


def test_the_store_keeps_its_data_when_killed_and_started_at_another_address(
    pod: StorePod,
) -> None:
    pod.start("127.31.0.1")
    pod.store().write("a/b", b"kept")

    pod.kill()
    time.sleep(0.2)
    pod.start("127.31.0.2")

    assert pod.store().read("a/b", max_bytes=10) == b"kept"


def test_the_key_of_the_sessions_opens_the_one_bucket_only(pod: StorePod) -> None:
    pod.start("127.31.0.3")
    with pytest.raises(S3Error) as refused:
        pod.client().make_bucket("other")
    assert refused.value.code == "AccessDenied"
    with pytest.raises(S3Error) as unknown:
        pod.client("nobody", "nothing-of-value").list_buckets()
    assert unknown.value.code == "InvalidAccessKeyId"
