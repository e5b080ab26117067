"""A real Kubernetes control plane as four local processes; it must not know how pods run.

etcd, kube-apiserver, kube-controller-manager and kube-scheduler listen on
loopback only. Everything lives in one folder, and every part can be killed and
started again from it on the same ports.
"""

import csv
import io
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubebooth_cluster import kubeconfig, pki, processes
from kubebooth_cluster.api import Api, ApiError
from kubebooth_cluster.binaries import controlplane_assets
from kubebooth_cluster.errors import ClusterError
from kubebooth_cluster.files import read_json, write_json, write_whole
from kubebooth_cluster.flags import Layout, component_flags
from kubebooth_cluster.ports import free_ports
from kubebooth_cluster.processes import ProcessId

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

_USERS = {
    "admin": "system:masters",
    "node-agent": "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}


@dataclass(frozen=True)
class Options:
    """What may differ between control planes.

    `flags` are more command line flags by component, `emulated_version` ("1.33" to
    "1.36") makes it answer as an older server, and with `die_with_parent` the
    processes end with the thread that started them.
    """

    unsafe_no_fsync: bool = True
    die_with_parent: bool = False
    emulated_version: str | None = None
    flags: Mapping[str, Sequence[str]] | None = None


class ControlPlane:
    """Start, stop, kill and restart the parts of one control plane kept in `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        assets: Path | None = None,
        port_base: int | None = None,
        options: Options | None = None,
    ) -> None:
        """Ports count up from `port_base`; without it free ones are taken, once."""
        self.folder = folder.resolve()
        self.options = options or Options()
        self._assets = assets
        self._port_base = port_base
        self._processes_file = self.folder / "processes.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; it exists after `start`."""
        return self.folder / "kubeconfig"

    @property
    def pki_folder(self) -> Path:
        """Where the cluster's authority and certificates are."""
        return self.folder / "pki"

    @property
    def layout(self) -> Layout:
        """The ports and address ranges of this cluster. Raises ClusterError before `start`."""
        kept = read_json(self.folder / "layout.json")
        if kept is None:
            raise ClusterError(f"{self.folder}: no cluster here yet; run `up`")
        return Layout(**kept)

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://127.0.0.1:{self.layout.api_port}"

    def api(self, *, timeout_s: float = 30) -> Api:
        """Blocking JSON requests as the administrator."""
        return Api(kubeconfig.read(self.kubeconfig), timeout_s=timeout_s)

    def kubeconfig_of(self, user: str) -> Path:
        """The kubeconfig of one of the cluster's own users, such as `node-agent`."""
        return self.pki_folder / f"{user.replace(':', '-')}.kubeconfig"

    def log(self, component: str) -> Path:
        """The log file of a component."""
        return self.folder / "logs" / f"{component}.log"

    def process(self, component: str) -> ProcessId | None:
        """The recorded process of a component, if it is alive."""
        record = (read_json(self._processes_file) or {}).get(component)
        if record is None:
            return None
        process = ProcessId(**record)
        return process if processes.is_alive(process) else None

    def start(self, *, timeout_s: float = 120) -> None:
        """Start what does not run, and wait until the whole control plane is ready.

        Raises ClusterError with the end of the log when a part dies or is not ready
        in `timeout_s` seconds.
        """
        self._prepare()
        deadline = time.monotonic() + timeout_s
        self._start_component("etcd")
        self._start_component("kube-apiserver")
        self._wait(deadline, "/readyz", ("etcd", "kube-apiserver"))
        self._start_component("kube-controller-manager")
        self._start_component("kube-scheduler")
        # Without this account the API server refuses every pod of the namespace.
        self._wait(deadline, "/api/v1/namespaces/default/serviceaccounts/default", COMPONENTS)

    def stop(self, *, grace_s: float = 10) -> None:
        """End every part, clients first; what ignores SIGTERM for `grace_s` is killed."""
        for component in reversed(COMPONENTS):
            process = self.process(component)
            if process is not None:
                processes.stop(process, grace_s=grace_s)

    def kill(self, component: str) -> None:
        """SIGKILL one part, as a crash would."""
        process = self.process(component)
        if process is not None:
            processes.kill(process)

    def restart(self, component: str, *, timeout_s: float = 60) -> None:
        """Kill one part if it runs, start it on the same ports, wait until ready."""
        self.kill(component)
        self._start_component(component)
        self.wait_ready(timeout_s=timeout_s)

    def wait_ready(self, *, timeout_s: float = 60) -> None:
        """Wait until the API server says it is ready. Raises ClusterError."""
        deadline = time.monotonic() + timeout_s
        # Just after a crash of etcd the API server may still believe in it.
        while not _listens(self.layout.etcd_port) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._wait(deadline, "/readyz", ("etcd", "kube-apiserver"))

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not (self.folder / "layout.json").exists():
            write_json(self.folder / "layout.json", vars(self._new_layout()))
        layout = self.layout
        pki.make_authority(self.pki_folder)
        local = ["127.0.0.1", "localhost"]
        dns = [f"kubernetes{end}" for end in ("", ".default", ".default.svc")]
        names = [*local, layout.first_service_ip, *dns, "kubernetes.default.svc.cluster.local"]
        pki.make_certificate(
            self.pki_folder, "apiserver", common_name="kube-apiserver", names=names
        )
        pki.make_certificate(self.pki_folder, "etcd", common_name="etcd", names=local)
        pki.make_certificate(self.pki_folder, "etcd-client", common_name="kube-apiserver")
        pki.make_certificate(self.pki_folder, "kubelet-client", common_name="kube-apiserver")
        self._make_users()

    def _new_layout(self) -> Layout:
        base = self._port_base
        ports = free_ports(3) if base is None else [base, base + 1, base + 2]
        # Clusters side by side share the loopback network: each takes its own slice of it.
        octet = ports[0] % 60 + 1
        return Layout(
            api_port=ports[0],
            etcd_port=ports[1],
            etcd_peer_port=ports[2],
            service_range=f"127.{128 + octet}.0.0/16",
            pod_prefix=f"127.{64 + octet}",
        )

    def _make_users(self) -> None:
        tokens = self.pki_folder / "tokens.csv"
        if not tokens.exists():
            rows = io.StringIO()
            writer = csv.writer(rows, lineterminator="\n")
            for user, group in _USERS.items():
                writer.writerow([secrets.token_urlsafe(32), user, user, group])
            write_whole(tokens, rows.getvalue(), mode=0o600)
        authority = (self.pki_folder / "ca.crt").read_text()
        for token, user, *_ in csv.reader(io.StringIO(tokens.read_text())):
            credentials = kubeconfig.Credentials(self.server, authority, token)
            path = self.kubeconfig if user == "admin" else self.kubeconfig_of(user)
            kubeconfig.write(path, credentials, name="kubebooth", user=user)

    def _start_component(self, component: str) -> None:
        if self.process(component) is not None:
            return
        assets = self._assets or controlplane_assets()
        flags = component_flags(
            component,
            folder=self.folder,
            layout=self.layout,
            unsafe_no_fsync=self.options.unsafe_no_fsync,
            emulated_version=self.options.emulated_version,
        )
        more = (self.options.flags or {}).get(component, ())
        process = processes.start(
            [assets / component, *flags, *more],
            log=self.log(component),
            env={"PATH": os.defpath, "HOME": str(self.folder)},
            folder=self.folder,
            die_with_parent=self.options.die_with_parent,
        )
        records = read_json(self._processes_file) or {}
        records[component] = vars(process)
        write_json(self._processes_file, records)

    def _wait(self, deadline: float, path: str, needed: Sequence[str]) -> None:
        api = self.api(timeout_s=5)
        problem = "no answer"
        while time.monotonic() < deadline:
            for component in needed:
                if self.process(component) is None:
                    raise ClusterError(
                        f"{component} ended; the end of {self.log(component)}:\n"
                        + processes.tail(self.log(component))
                    )
            try:
                api.text("GET", path)
            except (ApiError, OSError) as error:
                problem = str(error)
                time.sleep(0.1)
            else:
                return
        raise ClusterError(
            f"the API server is not ready ({path}: {problem}); see {self.log('kube-apiserver')}"
        )


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
