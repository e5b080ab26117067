"""Brings sample pictures and artifacts of a session to this machine, verified by digest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kubebooth_api.artifacts import Manifest
from kubebooth_store import NotFound, OnBytes, Store, fetch, read_manifest
from kubebooth_store.content import file_sha256

from kubebooth_cli.errors import CliError, near
from kubebooth_cli.session import Artifact, Session
from kubebooth_cli.text import words

_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


def samples_uri(session: Session) -> str:
    """Address of the newest sample picture. Raises `CliError` when there is none yet."""
    uri = session.status.get("samples")
    if uri:
        return str(uri)
    if session.ended is False:
        raise CliError(
            f"{session.name} has no sample picture: {session.message}",
            f"kubebooth status {session.name} tells more",
        )
    raise CliError(
        f"{session.name} has no sample picture yet ({words(session.phase)})",
        f"{_how_to_wait(session)}; samples.everySteps makes them on the way",
    )


def samples_file(session: Session, uri: str) -> Path:
    """A file name of its own for one sample picture, so that none replaces another."""
    *_, folder, last = ["", *uri.split("/")]
    name = f"{session.name}-{folder}-{last}"
    return Path(_UNUSUAL.sub("-", name))


def bring_samples(store: Store, uri: str, path: Path) -> None:
    """Download one picture; its folder's manifest says what its bytes must be."""
    key = store.key_of(uri)
    prefix, _, name = key.rpartition("/")
    manifest = read_manifest(store, prefix)
    row = next((file for file in manifest.files if file.path == name), None) if manifest else None
    try:
        store.download(
            key, path, sha256=row.sha256 if row else None, size=row.size if row else None
        )
    except NotFound as error:
        raise CliError(
            f"the sample picture {uri} is no longer in the store", "wait for the next one"
        ) from error


def artifact_of(session: Session, name: str | None) -> Artifact:
    """The artifact of a name, or the only one. Raises `CliError` that names what there is."""
    known = {artifact.name: artifact for artifact in session.artifacts}
    if not known:
        raise CliError(
            f"{session.name} has published nothing yet ({words(session.phase)})",
            _how_to_wait(session),
        )
    if name is None:
        return known.get("diffusers") or next(iter(known.values()))
    if name not in known:
        raise CliError(
            f"{session.name} has no artifact {name!r}",
            near(name, known) or f"it has: {', '.join(known)}",
        )
    return known[name]


def _how_to_wait(session: Session) -> str:
    if session.holds("Suspended"):
        return f"kubebooth resume {session.name} lets it go on"
    if session.ended is False:
        return f"kubebooth status {session.name} tells what stands in the way"
    return f"kubebooth watch {session.name} waits for the end"


def bring_artifact(
    store: Store, artifact: Artifact, folder: Path, *, on_bytes: OnBytes
) -> Manifest:
    """Fetch an artifact; the folder must be new or hold the same bytes already.

    Raises `CliError` when a file of another content would be replaced.
    """
    prefix = store.key_of(artifact.uri)
    manifest = read_manifest(store, prefix)
    if manifest is not None and folder.exists():
        _check_free(folder, {file.path: file.sha256 for file in manifest.files})
    return fetch(store, prefix, folder, expect_digest=artifact.digest, on_bytes=on_bytes)


def _check_free(folder: Path, wanted: Mapping[str, str]) -> None:
    if not folder.is_dir():
        raise CliError(f"{folder} is a file", "name another folder with -o")
    for name, sha256 in wanted.items():
        path = folder / name
        if path.exists() and (not path.is_file() or file_sha256(path) != sha256):
            raise CliError(
                f"{path} exists with other content and is left as it is",
                "name another folder with -o",
            )
