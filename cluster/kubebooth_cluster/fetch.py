"""Files from the internet, each checked against a published digest; knows nothing of their use."""

import hashlib
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

from kubebooth_cluster.errors import ClusterError

_CHUNK_BYTES = 1 << 20


class FetchError(ClusterError):
    """A file could not be had, or is not what its publisher says it is."""


def _open(url: str, timeout_s: float) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise FetchError(f"{url}: a mirror must be an https:// or http:// address")
    with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310
        return bytes(answer.read(1 << 20))


def read_small(url: str, *, timeout_s: float) -> str:
    """The text behind `url`, at most 1 MiB, within `timeout_s` seconds whatever happens.

    A name server that does not answer is outside urllib's own limit, hence the thread.
    """
    found: list[bytes] = []
    failed: list[str] = []

    def work() -> None:
        try:
            found.append(_open(url, timeout_s))
        except (OSError, ValueError, ClusterError) as error:
            failed.append(str(error))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(timeout_s)
    if not found:
        raise FetchError(f"{url}: {failed[0] if failed else f'no answer in {timeout_s:g} s'}")
    return found[0].decode(errors="replace")


def download(url: str, target: Path, *, sha256: str, timeout_s: float) -> None:
    """Write the file behind `url` to `target`, which appears only when its digest is right.

    `timeout_s` is the longest silence. Raises FetchError, and leaves nothing behind.
    """
    draft = target.with_name(f".{target.name}.draft")
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=timeout_s) as answer,  # noqa: S310
            draft.open("wb") as output,
        ):
            while chunk := answer.read(_CHUNK_BYTES):
                digest.update(chunk)
                output.write(chunk)
        if digest.hexdigest() != sha256.lower():
            raise FetchError(f"{url}: sha256 {digest.hexdigest()}, published is {sha256}")
        draft.replace(target)
    except (OSError, ssl.SSLError, urllib.error.URLError, ValueError) as error:
        raise FetchError(f"{url}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
