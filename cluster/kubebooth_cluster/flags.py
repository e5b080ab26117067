"""The command lines of the control plane's parts, as pure functions of where things are."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The ports and loopback ranges of one cluster, chosen once and kept.

    Pods get addresses below `pod_prefix` ("127.77"), Services inside `service_range`.
    """

    api_port: int
    etcd_port: int
    etcd_peer_port: int
    service_range: str
    pod_prefix: str

    @property
    def first_service_ip(self) -> str:
        """The ClusterIP of the Service `kubernetes`."""
        return str(ipaddress.ip_network(self.service_range)[1])


def component_flags(
    component: str,
    *,
    folder: Path,
    layout: Layout,
    unsafe_no_fsync: bool,
    emulated_version: str | None,
) -> list[str]:
    """The flags of one component whose data and keys are under `folder`."""
    if component == "etcd":
        return _etcd(folder, layout, unsafe_no_fsync=unsafe_no_fsync)
    flags = {
        "kube-apiserver": _apiserver(folder, layout),
        "kube-controller-manager": _controller_manager(folder / "pki"),
        "kube-scheduler": _scheduler(folder / "pki"),
    }[component]
    if emulated_version is not None:
        flags.append(f"--emulated-version=kube={emulated_version}")
    return flags


def _etcd(folder: Path, layout: Layout, *, unsafe_no_fsync: bool) -> list[str]:
    pki = folder / "pki"
    client = f"https://127.0.0.1:{layout.etcd_port}"
    peer = f"https://127.0.0.1:{layout.etcd_peer_port}"
    # Pods share the host's network, so etcd must ask even local clients who they are.
    tls = [
        f"--{prefix}{flag}"
        for prefix in ("", "peer-")
        for flag in (
            f"cert-file={pki}/etcd.crt",
            f"key-file={pki}/etcd.key",
            f"trusted-ca-file={pki}/ca.crt",
            "client-cert-auth",
        )
    ]
    return [
        "--name=one",
        f"--data-dir={folder}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=one={peer}",
        "--quota-backend-bytes=8589934592",
        "--log-level=warn",
        *tls,
        *(["--unsafe-no-fsync"] if unsafe_no_fsync else []),
    ]


def _apiserver(folder: Path, layout: Layout) -> list[str]:
    pki = folder / "pki"
    return [
        f"--etcd-servers=https://127.0.0.1:{layout.etcd_port}",
        f"--etcd-cafile={pki}/ca.crt",
        f"--etcd-certfile={pki}/etcd-client.crt",
        f"--etcd-keyfile={pki}/etcd-client.key",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={layout.api_port}",
        # EndpointSlices refuse loopback addresses; pods find the server by environment.
        "--endpoint-reconciler-type=none",
        f"--cert-dir={pki}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/kubelet-client.crt",
        f"--kubelet-client-key={pki}/kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={layout.service_range}",
        f"--token-auth-file={pki}/tokens.csv",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",
    ]


def _controller_manager(pki: Path) -> list[str]:
    # Endpoints of loopback pods are refused by the API server, and there are no clouds here.
    off = (
        "endpoints-controller",
        "endpointslice-controller",
        "endpointslice-mirroring-controller",
        "node-ipam-controller",
        "node-route-controller",
        "cloud-node-lifecycle-controller",
    )
    return [
        f"--kubeconfig={pki}/system-kube-controller-manager.kubeconfig",
        f"--service-account-private-key-file={pki}/sa.key",
        f"--root-ca-file={pki}/ca.crt",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--controllers=*," + ",".join(f"-{name}" for name in off),
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--secure-port=0",
    ]


def _scheduler(pki: Path) -> list[str]:
    return [
        f"--kubeconfig={pki}/system-kube-scheduler.kubeconfig",
        "--leader-elect=false",
        "--authentication-skip-lookup",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--secure-port=0",
    ]
