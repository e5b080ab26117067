"""One HTTP request to an address that was checked first: no private network, no leaked token.

The name is resolved once, every address it has is judged, and the connection goes to the judged
address itself, so that a name cannot point elsewhere a moment later. It must not know models.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import urllib3

from kubebooth_trainer.errors import ConfigurationError, StorageFault

MOST_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
AGENT = "kubebooth-trainer"


class Unreachable(StorageFault):
    """The other side is away, slow or broken; worth another try."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="SourceUnavailable")


@dataclass(frozen=True)
class Reply:
    """Status, headers and the body still to come."""

    status: int
    headers: Mapping[str, str]
    """Lower-case names."""
    body: Any
    """urllib3's response: `stream(amount)` gives the bytes."""
    url: str
    """Address that answered, after redirects."""


@dataclass(frozen=True)
class Network:
    """How the world may be asked."""

    allow_private: bool = False
    """Whether addresses of private networks may be asked; link-local ones never."""
    timeout_s: float = 60.0
    """Longest silence of the other side."""
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    @contextlib.contextmanager
    def get(
        self,
        url: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
    ) -> Iterator[Reply]:
        """Ask and follow redirects; the token goes to the first host only.

        Raises `ConfigurationError` for addresses that may not be asked, `Unreachable` else.
        """
        home = _host_of(url)
        for _hop in range(MOST_REDIRECTS + 1):
            asked = {"user-agent": AGENT, "accept-encoding": "identity", **(headers or {})}
            if token is not None and _host_of(url) == home:
                asked["authorization"] = f"Bearer {token}"
            with self._once(method, url, asked) as reply:
                target = reply.headers.get("location")
                if reply.status not in REDIRECTS or target is None:
                    yield reply
                    return
                url = urljoin(url, target)
        raise Unreachable(f"{shown(url)}: more than {MOST_REDIRECTS} redirects")

    @contextlib.contextmanager
    def _once(self, method: str, url: str, headers: Mapping[str, str]) -> Iterator[Reply]:
        parts = _parts(url)
        if "authorization" in headers and parts.scheme != "https" and not self.allow_private:
            raise ConfigurationError(
                f"{shown(url)}: a token is sent over https only; use an https address"
            )
        address = self._judged(parts)
        pool = self._pool(parts, address)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            response = pool.urlopen(
                method,
                path,
                headers={**headers, "host": parts.netloc.rpartition("@")[2]},
                redirect=False,
                retries=False,
                preload_content=False,
                assert_same_host=False,
                timeout=urllib3.Timeout(connect=min(self.timeout_s, 20.0), read=self.timeout_s),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            pool.close()
            raise Unreachable(f"{shown(url)}: {_told(error)}") from error
        try:
            told = {name.lower(): value for name, value in response.headers.items()}
            yield Reply(response.status, told, response, url)
        except (urllib3.exceptions.HTTPError, TimeoutError, ConnectionError) as error:
            raise Unreachable(f"{shown(url)}: {_told(error)}") from error
        finally:
            response.close()
            pool.close()

    def _pool(self, parts: SplitResult, address: str) -> urllib3.HTTPConnectionPool:
        if parts.scheme == "https":
            return urllib3.HTTPSConnectionPool(
                address,
                parts.port or 443,
                ssl_context=self.tls,
                server_hostname=parts.hostname,
                assert_hostname=parts.hostname,
                maxsize=1,
            )
        return urllib3.HTTPConnectionPool(address, parts.port or 80, maxsize=1)

    def _judged(self, parts: SplitResult) -> str:
        """The first address of a host, when all of them may be asked."""
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"{host}: the name cannot be resolved ({error})") from error
        addresses = list(dict.fromkeys(str(row[4][0]) for row in found))
        for address in addresses:
            judged = ipaddress.ip_address(address.split("%")[0])
            mapped = getattr(judged, "ipv4_mapped", None) or judged
            if mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified:
                raise ConfigurationError(
                    f"{host} is {address}, which no model is fetched from",
                    reason="AddressRefused",
                )
            if not mapped.is_global and not self.allow_private:
                raise ConfigurationError(
                    f"{host} is {address}, an address of a private network; allow them in the"
                    " installation (hub.allowPrivateAddresses), or use a public address",
                    reason="AddressRefused",
                )
        return addresses[0]


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{shown(url)}: no valid address ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"{shown(url)}: only http and https addresses are fetched")
    if any(mark in url for mark in "\r\n\t "):
        raise ConfigurationError(f"{shown(url)}: an address has no spaces or line ends")
    return parts


def _host_of(url: str) -> tuple[str, str, int | None]:
    parts = _parts(url)
    return parts.scheme, parts.hostname or "", parts.port


def shown(url: str) -> str:
    """An address for people: without user, password and query, which may hold secrets."""
    head, _, rest = url.partition("://")
    return f"{head}://{rest.partition('?')[0].rpartition('@')[2]}"[:200]


def _told(error: BaseException) -> str:
    text = str(error)
    # Some of the library's errors begin with the object's own address.
    return (text.rpartition(">: ")[2] or text or type(error).__name__)[:200]
