"""A SeaweedFS server on loopback for tests and tools; it must not know what is stored in it."""

import http.client
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from kubebooth_cluster import processes
from kubebooth_cluster.binaries import weed
from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.files import write_json
from kubebooth_cluster.ports import free_ports
from kubebooth_cluster.processes import ProcessId

_PORT_FLAGS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
)


class Weed:
    """One S3 server over the folder `data`; it keeps its ports over kill and restart.

    Its one identity may do everything: `access_key`, `secret_key`. `endpoint` is
    `host:port` as the minio client wants it, `url` has the scheme.
    """

    def __init__(
        self,
        folder: Path,
        *,
        buckets: Sequence[str] = (),
        iam: dict[str, object] | None = None,
        die_with_parent: bool = True,
    ) -> None:
        """`iam` is SeaweedFS's advanced IAM document (sts, roles, policies), if any."""
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.log = self.folder / "weed.log"
        self.access_key = "kubebooth"
        self.secret_key = secrets.token_hex(16)
        self._buckets = tuple(buckets)
        self._iam = iam
        self._die_with_parent = die_with_parent
        self._ports = free_ports(len(_PORT_FLAGS))
        self._process: ProcessId | None = None
        # Unix sockets have names of at most 107 bytes, so their folder is a short one.
        self._sockets = Path(tempfile.mkdtemp(prefix="weed-"))

    @property
    def endpoint(self) -> str:
        """`127.0.0.1:PORT` of the S3 service."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def url(self) -> str:
        """The URL of the S3 service."""
        return f"http://{self.endpoint}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        running = self._process is not None and processes.is_alive(self._process)
        return self._process.pid if running and self._process else None

    def start(self, *, timeout_s: float = 60) -> "Weed":
        """Start it and wait until S3 answers. Raises ClusterError with the end of the log."""
        if self.pid is not None:
            return self
        self.data.mkdir(parents=True, exist_ok=True)
        self._process = processes.start(
            self._command(),
            log=self.log,
            env={"PATH": os.defpath, "HOME": str(self.folder), "TMPDIR": str(self._sockets)},
            folder=self.folder,
            die_with_parent=self._die_with_parent,
        )
        deadline = time.monotonic() + timeout_s
        # The buckets are made just after the first answer; the filer knows when.
        filer = self._ports[_PORT_FLAGS.index("filer.port")]
        waiting = [(self._ports[0], "/healthz")]
        waiting += [(filer, f"/buckets/{bucket}/") for bucket in self._buckets]
        while not all(_answers(port, path) for port, path in waiting):
            if self.pid is None or time.monotonic() > deadline:
                raise ClusterError(f"weed is not ready; {processes.tail(self.log)}")
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash would; what was acknowledged stays in `data`."""
        if self._process is not None:
            processes.kill(self._process)

    def stop(self) -> None:
        """End it and remove its sockets; `data` stays."""
        if self._process is not None:
            processes.stop(self._process, grace_s=5)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _command(self) -> list[str | Path]:
        identity = {
            "name": "admin",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        write_json(self.folder / "s3.json", {"identities": [identity]})
        more = []
        if self._iam is not None:
            write_json(self.folder / "iam.json", self._iam)
            more.append(f"-s3.iam.config={self.folder}/iam.json")
        if self._buckets:
            more.append(f"-bucket={','.join(self._buckets)}")
        return [
            weed(),
            "mini",
            f"-dir={self.data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={self.folder}/s3.json",
            f"-s3.localSocket={self._sockets}/s3.sock",
            f"-filer.localSocket={self._sockets}/filer.sock",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *more,
            *(f"-{flag}={port}" for flag, port in zip(_PORT_FLAGS, self._ports, strict=True)),
        ]


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
