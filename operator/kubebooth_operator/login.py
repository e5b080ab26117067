"""Where the API server is and who we are: service account or kubeconfig; no request is made."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class LoginError(Exception):
    """There are no usable credentials; the message names the file and the cure."""


@dataclass(frozen=True)
class Login:
    """Address and credentials of one API server."""

    server: str
    authority_pem: str | None = None
    """Certificates to trust; absent trusts the system's."""
    insecure: bool = False
    token: str | None = None
    token_file: Path | None = None
    """Read again and again: tokens of service accounts are replaced every hour or so."""
    certificate_pem: str | None = None
    key_pem: str | None = None

    def bearer(self) -> str | None:
        """The token as of now. Raises `LoginError`."""
        if self.token_file is None:
            return self.token
        return _text(self.token_file).strip()

    def tls(self) -> ssl.SSLContext | bool:
        """For aiohttp's `ssl`: a context, or True for plain http and the system's trust."""
        if not self.server.startswith("https:"):
            return True
        context = ssl.create_default_context(cadata=self.authority_pem)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate_pem and self.key_pem:
            # The ssl module reads client certificates from files only.
            with tempfile.TemporaryDirectory() as folder:
                certificate, key = Path(folder, "crt"), Path(folder, "key")
                certificate.write_text(self.certificate_pem)
                key.touch(mode=0o600)
                key.write_text(self.key_pem)
                context.load_cert_chain(certificate, key)
        return context


def login(environment: Mapping[str, str] = os.environ, *, account: Path = _ACCOUNT) -> Login:
    """Credentials by `KUBECONFIG`, else of the pod's service account, else `~/.kube/config`.

    Raises `LoginError`.
    """
    if environment.get("KUBECONFIG"):
        return from_kubeconfig(Path(environment["KUBECONFIG"].split(os.pathsep)[0]))
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return from_account(environment, account)
    home = Path.home() / ".kube" / "config"
    if home.exists():
        return from_kubeconfig(home)
    raise LoginError("no credentials: run in a pod with a service account, or set KUBECONFIG")


def from_account(environment: Mapping[str, str], account: Path) -> Login:
    """The pod's own service account. Raises `LoginError`."""
    host = environment["KUBERNETES_SERVICE_HOST"]
    port = environment.get("KUBERNETES_SERVICE_PORT_HTTPS") or environment.get(
        "KUBERNETES_SERVICE_PORT", "443"
    )
    token = account / "token"
    _text(token)
    return Login(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        authority_pem=_text(account / "ca.crt"),
        token_file=token,
    )


def from_kubeconfig(path: Path) -> Login:
    """The current context of a kubeconfig. Raises `LoginError`."""
    try:
        config = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise LoginError(f"{path}: not YAML: {error}") from error
    try:
        context = _named(config, "contexts", config["current-context"])["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"])["user"] or {}
        server = cluster["server"]
    except (KeyError, TypeError) as error:
        raise LoginError(f"{path}: {error} is missing; `kubectl config view` shows it") from error
    if "exec" in user or "auth-provider" in user:
        raise LoginError(
            f"{path}: plugins for credentials are not run here; use a service account's token"
        )
    token_file = user.get("tokenFile")
    return Login(
        server=server.rstrip("/"),
        authority_pem=_data(path, cluster, "certificate-authority"),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        token=user.get("token"),
        token_file=None if token_file is None else path.parent / token_file,
        certificate_pem=_data(path, user, "client-certificate"),
        key_pem=_data(path, user, "client-key"),
    )


def _named(config: Mapping[str, Any], section: str, name: str) -> Mapping[str, Any]:
    for item in config.get(section) or ():
        if item.get("name") == name:
            found: Mapping[str, Any] = item
            return found
    raise KeyError(f"{section}[{name}]")


def _data(path: Path, section: Mapping[str, Any], name: str) -> str | None:
    inline = section.get(f"{name}-data")
    if inline:
        try:
            return base64.b64decode(inline, validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise LoginError(f"{path}: {name}-data is not base64 of PEM") from error
    file = section.get(name)
    return _text(path.parent / file) if file else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LoginError(f"{path}: {error}") from error
