"""Signed S3 requests with time-outs and retries; the only importer of minio and urllib3.

It must not know what the requests are for. minio's own verbs carry no conditions and read whole
parts into memory, so its address builder and signer are used, and the requests are ours.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlunsplit
from urllib.request import getproxies, proxy_bypass
from xml.etree.ElementTree import Element

import urllib3
from minio import time as minio_time
from minio.credentials import Credentials
from minio.helpers import BaseURL
from minio.signer import sign_v4_s3
from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError, SSLError

from kubebooth_store.content import EMPTY_SHA256
from kubebooth_store.errors import Refused, Unavailable
from kubebooth_store.patience import Attempt, Patience, Transient, persist
from kubebooth_store.replies import Reply, document, judge

_BLOCK_BYTES = 256 * 1024
_FAULT_BYTES = 64 * 1024


class Readable(Protocol):
    """What a body is read from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, b'' at the end."""


@dataclass(frozen=True)
class Body:
    """A request's content, opened anew for each try."""

    size: int
    sha256: str
    opened: Callable[[], Readable] | bytes

    @staticmethod
    def of(data: bytes) -> Body:
        """A body of bytes in memory."""
        return Body(len(data), hashlib.sha256(data).hexdigest(), data)


@dataclass(frozen=True)
class Call:
    """One S3 request."""

    method: str
    key: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    max_reply_bytes: int = 8 << 20
    """Longer bodies of replies are cut and marked."""


@dataclass
class _Watched:
    """A body that stops being read once the time is over."""

    source: Readable
    attempt: Attempt
    done_bytes: int = 0

    def read(self, size: int = -1) -> bytes:
        self.attempt.check(self.done_bytes)
        block = self.source.read(size if size > 0 else _BLOCK_BYTES)
        self.done_bytes += len(block)
        return block


@dataclass(frozen=True)
class Keys:
    """Credentials; never printed."""

    access: str = field(repr=False)
    secret: str = field(repr=False)
    session: str | None = field(default=None, repr=False)


def base64_of(sha256: str) -> str:
    """A hex digest as S3's checksum headers want it."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, to which no proxy leads."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _pool(scheme: str, host: str, *, connections: int, ca_file: str | None) -> urllib3.PoolManager:
    tls = ssl.create_default_context(cafile=ca_file) if scheme == "https" else None
    options: dict[str, Any] = {
        "maxsize": connections,
        "block": True,
        "blocksize": _BLOCK_BYTES,
        "ssl_context": tls,
    }
    proxy = None if is_loopback(host) or proxy_bypass(host) else getproxies().get(scheme)
    if proxy is not None:
        return urllib3.ProxyManager(proxy, **options)
    return urllib3.PoolManager(**options)


class Wire:
    """Requests to one bucket of one server."""

    def __init__(
        self,
        *,
        endpoint: str,
        bucket: str,
        region: str | None,
        keys: Keys | None,
        patience: Patience,
        connections: int,
        ca_file: str | None = None,
    ) -> None:
        if "@" in endpoint:
            raise Refused("an endpoint must not hold credentials; give them as keys")
        try:
            self._base = BaseURL(endpoint, region)
            self._base.build(method="GET", region=region or "us-east-1", bucket_name=bucket)
            parsed = urllib3.util.parse_url(endpoint)
            if not parsed.host:
                raise ValueError("names no host")
            self._http = _pool(
                parsed.scheme or "http",
                parsed.host,
                connections=connections,
                ca_file=ca_file,
            )
        except (ValueError, LocationParseError, OSError) as error:
            raise Refused(
                f"endpoint {endpoint!r}: {error}; write http(s)://host:port without a path"
            ) from error
        self.endpoint = endpoint
        self.bucket = bucket
        self.patience = patience
        self._region = self._base.region or "us-east-1"
        self._keys = keys

    def what(self, call: Call) -> str:
        """How a request is named in messages."""
        key = f"/{call.key}" if call.key else ""
        return f"{call.method} s3://{self.bucket}{key} at {self.endpoint}"

    def send(self, call: Call, *, anonymous: bool = False, keys: Keys | None = None) -> Reply:
        """The reply of a request, retried until the time is over.

        Raises the errors of `replies.judge`, `Unavailable` and `Corrupt`.
        """
        signer = None if anonymous else keys or self._keys
        return persist(
            lambda attempt: self._once(call, attempt, signer),
            patience=self.patience,
            what=self.what(call),
        )

    def ask(self, call: Call, *, root: str) -> Element:
        """The XML document of a reply; one that tells of a fault is retried like a fault."""

        def once(attempt: Attempt) -> Element:
            reply = self._once(call, attempt, self._keys)
            return document(reply, root=root, what=self.what(call))

        return persist(once, patience=self.patience, what=self.what(call))

    def _once(self, call: Call, attempt: Attempt, keys: Keys | None) -> Reply:
        url, headers = self._signed(call, keys)
        body: Readable | bytes | None = None
        if call.body is not None:
            opened = call.body.opened
            body = opened if isinstance(opened, bytes) else _Watched(opened(), attempt)
        try:
            response = self._http.request(
                call.method,
                url,
                body=body,  # type: ignore[arg-type]
                headers=headers,
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=self.patience.connect_s, read=self.patience.idle_s),
                pool_timeout=self.patience.idle_s,
            )
            reply = _collect(response, call, attempt)
        except SSLError as error:
            raise Unavailable(
                f"{self.what(call)}: no trusted connection ({error}); "
                "name the store's certificate authority in AWS_CA_BUNDLE"
            ) from error
        except NewConnectionError as error:
            raise Transient("no connection could be made") from error
        except (HTTPError, OSError) as error:
            raise Transient(f"the connection failed ({type(error).__name__})") from error
        return judge(reply, what=self.what(call), attempt=attempt.number)

    def _signed(self, call: Call, keys: Keys | None) -> tuple[str, dict[str, str]]:
        url = self._base.build(
            method=call.method,
            region=self._region,
            bucket_name=self.bucket,
            object_name=call.key,
            query_params=dict(call.query),
        )
        digest = call.body.sha256 if call.body else EMPTY_SHA256
        now = minio_time.utcnow()
        headers = {
            **call.headers,
            "Host": url.netloc,
            "x-amz-content-sha256": digest,
            "x-amz-date": minio_time.to_amz_date(now),
        }
        if call.body is not None:
            headers["Content-Length"] = str(call.body.size)
            if call.method == "PUT":
                # Servers that do not check the signed digest check this one.
                headers["x-amz-checksum-sha256"] = base64_of(digest)
        if keys is not None:
            if keys.session:
                headers["x-amz-security-token"] = keys.session
            sign_v4_s3(
                method=call.method,
                url=url,
                region=self._region,
                headers=headers,
                credentials=Credentials(keys.access, keys.secret, keys.session),
                content_sha256=digest,
                date=now,
            )
        headers["User-Agent"] = "kubebooth"
        headers["Accept-Encoding"] = "identity"
        return urlunsplit(url), headers


def _collect(response: urllib3.BaseHTTPResponse, call: Call, attempt: Attempt) -> Reply:
    """Read a reply to its end, within its bound and the time left."""
    wanted = 200 <= response.status < 300
    bound = call.max_reply_bytes if wanted else _FAULT_BYTES
    headers = {name.lower(): value for name, value in response.headers.items()}
    pieces: list[bytes] = []
    size = 0
    whole = False
    try:
        while call.method != "HEAD":
            attempt.check(size)
            # One read of the socket at a time: a trickle must come back here.
            piece = response.read1(_BLOCK_BYTES, decode_content=False)
            if not piece:
                break
            size += len(piece)
            if size > bound:
                return Reply(response.status, headers, tuple(pieces), oversized=True)
            pieces.append(piece)
        response.drain_conn()
        whole = True
    finally:
        if not whole:
            response.close()
        response.release_conn()
    return Reply(response.status, headers, tuple(pieces))
