"""The fetch stage as a whole: list, bring file by file, publish under what names the content.

Each file goes to the store as soon as it is verified and leaves the scratch disk, so a stopped
worker goes on with the file it was at, and the disk holds one file at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kubebooth_api import layout
from kubebooth_api.artifacts import Artifact, Manifest
from kubebooth_api.digests import digest_json
from kubebooth_api.runs import FetchRun, token_variable
from kubebooth_api.v1alpha1.common import HuggingFaceSource, SecretKeyRef, UrlSource
from kubebooth_api.v1alpha1.conversion import Detected
from kubebooth_store import Entry, Store, publish_uploaded, read_manifest

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.fetch import single_file
from kubebooth_trainer.fetch.download import Wanted, download
from kubebooth_trainer.fetch.hub import INDEX, listing, needed, pinned
from kubebooth_trainer.fetch.network import Network
from kubebooth_trainer.reporter import Reporter

MIB = 1 << 20
_MAX_INDEX_BYTES = 1 << 20
_READ_BYTES = 8 << 20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchOutcome:
    """What a fetch made true."""

    model: Artifact
    """The model in the store."""
    detected: Detected | None
    message: str
    """One sentence for people."""


def identity(run: FetchRun) -> str:
    """Digest of what names the content. A hub's mirror serves the same content; what was fetched
    with somebody's token stays in their namespace."""
    source = run.source
    named: dict[str, Any] = {"layout": run.layout}
    secret = None
    if source.hugging_face is not None:
        named |= {"repo": source.hugging_face.repo, "revision": source.hugging_face.revision}
        secret = source.hugging_face.token_secret_ref
    elif source.url is not None:
        named |= {"href": source.url.href, "sha256": source.url.sha256}
        secret = source.url.auth_secret_ref
    if secret is not None:
        named["namespace"] = run.session.namespace
    return digest_json(named)


def fetch_model(
    run: FetchRun,
    *,
    store: Store,
    reporter: Reporter,
    workdir: Path,
    network: Network | None = None,
) -> FetchOutcome:
    """Bring the model into the store, or find that it is there.

    Raises `ConfigurationError`, `DataError`, `Preempted`, `StorageFault` and the store's errors.
    """
    prefix = layout.fetched_model(identity(run))
    manifest = read_manifest(store, prefix)
    detected = None
    if manifest is None:
        folder = workdir / "fetch"
        folder.mkdir(parents=True, exist_ok=True)
        asked = network or Network(allow_private=run.allow_private)
        fetching = _Fetching(run, store, reporter, folder, prefix, asked)
        if run.source.hugging_face is not None:
            manifest = fetching.from_hub(run.source.hugging_face)
        elif run.source.url is not None:
            manifest = fetching.from_url(run.source.url)
        else:
            raise ConfigurationError("run.source: only huggingFace and url are fetched")
        detected = fetching.detected
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _LOG.info("the model is in the store already", extra={"uri": store.uri_of(prefix)})
    model = Artifact(
        name=prefix.rpartition("/")[2],
        uri=store.uri_of(prefix),
        digest=manifest.digest,
        size=manifest.size_bytes,
        format=single_file.form_of(manifest),
    )
    return FetchOutcome(
        model, detected, f"the model is in the store: {manifest.size_bytes / MIB:.1f} MiB"
    )


@dataclass
class _Fetching:
    """One fetch at work."""

    run: FetchRun
    store: Store
    reporter: Reporter
    folder: Path
    prefix: str
    network: Network
    done_bytes: int = 0
    total_bytes: int = 0
    detected: Detected | None = None

    def from_hub(self, source: HuggingFaceSource) -> Manifest:
        """A Diffusers layout or a single file of a repository."""
        token = _token(source.token_secret_ref, "huggingFace.tokenSecretRef")
        files = pinned(listing(self.network, self.run.hub, source, token=token), source)
        index = next((file for file in files if file.name == INDEX), None)
        components = None
        if index is not None:
            components = self._components(replace(index, most_bytes=_MAX_INDEX_BYTES), token)
        chosen = needed(files, repo=source.repo, components=components)
        facts = {"repo": source.repo, "revision": source.revision}
        if components is None:
            return self._single(chosen[0], token, facts)
        self.total_bytes = sum(file.size or 0 for file in chosen)
        sent = {file.name: self._bring(file, file.name, token) for file in chosen}
        return self._publish(sent, facts)

    def from_url(self, source: UrlSource) -> Manifest:
        """A single file behind an address."""
        token = _token(source.auth_secret_ref, "url.authSecretRef")
        wanted = Wanted(source.href, "the file of url.href", sha256=source.sha256)
        return self._single(wanted, token, {"href": source.href.partition("?")[0]})

    def _single(self, wanted: Wanted, token: str | None, facts: Mapping[str, Any]) -> Manifest:
        self.total_bytes = wanted.size or 0
        path = self.folder / "model"
        self._download(wanted, path, token)
        name = single_file.name_of(path)
        if self.run.layout == "Diffusers":
            named = path.rename(self.folder / name)
            manifest, self.detected = single_file.to_layout(
                named, self.store, self.prefix, variant=self.run.variant, reporter=self.reporter
            )
            named.unlink()
            return manifest
        sent = {name: self.store.upload(path, f"{self.prefix}/{name}")}
        path.unlink()
        return self._publish(sent, facts)

    def _bring(self, wanted: Wanted, name: str, token: str | None) -> Entry:
        """A file in the store, from there if an earlier worker left it."""
        key = f"{self.prefix}/{name}"
        there = self._left(wanted, key)
        if there is not None:
            self._tell(there.size)
            return there
        path = self.folder / "file"
        path.unlink(missing_ok=True)
        (self.folder / "file.part").unlink(missing_ok=True)
        sha256 = self._download(wanted, path, token)
        entry = self.store.upload(path, key, sha256=sha256)
        path.unlink()
        return replace(entry, sha256=sha256)

    def _left(self, wanted: Wanted, key: str) -> Entry | None:
        there = self.store.stat(key)
        if there is None or there.size != wanted.size:
            return None
        if wanted.sha256 is not None and there.sha256 == wanted.sha256:
            return there
        promised = wanted.sha256 or wanted.git_sha1
        if promised is None:
            return None
        sha256, blob = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
        blob.update(b"blob %d\0" % there.size)
        for start in range(0, there.size, _READ_BYTES):
            data = self.store.open_range(key, start=start, length=_READ_BYTES)
            sha256.update(data)
            blob.update(data)
        found = sha256.hexdigest() if wanted.sha256 is not None else blob.hexdigest()
        return replace(there, sha256=sha256.hexdigest()) if found == promised else None

    def _download(self, wanted: Wanted, path: Path, token: str | None) -> str:
        got = download(
            self.network,
            wanted,
            path,
            token=token,
            stop=self.reporter.stop,
            on_bytes=self._tell,
        )
        return got.sha256

    def _components(self, index: Wanted, token: str | None) -> frozenset[str]:
        """Names of the folders that the pipeline's index lists."""
        path = self.folder / "index"
        self._download(index, path, token)
        self.done_bytes = 0
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{INDEX} is not JSON", reason="SourceInvalid") from error
        if not isinstance(value, dict):
            raise DataError(f"{INDEX} is no JSON object", reason="SourceInvalid")
        return frozenset(
            name
            for name, entry in value.items()
            if isinstance(entry, list) and entry and entry[0] is not None
        )

    def _tell(self, count: int) -> None:
        self.done_bytes += count
        total = max(self.total_bytes, self.done_bytes)
        share = self.done_bytes * 100 // total if self.total_bytes else 0
        self.reporter.advance(
            "Fetch", self.done_bytes // MIB, total // MIB, percentage=min(share, 99)
        )

    def _publish(self, sent: Mapping[str, Entry], facts: Mapping[str, Any]) -> Manifest:
        return publish_uploaded(self.store, self.prefix, sent, kind="model", metadata=facts)


def _token(ref: SecretKeyRef | None, field: str) -> str | None:
    if ref is None:
        return None
    value = os.environ.get(token_variable(ref), "").strip()
    if not value or not value.isascii() or not value.isprintable():
        raise ConfigurationError(
            f"{field}: the key {ref.key} of Secret {ref.name} holds no token; put a token of one"
            " line there",
            reason="SecretInvalid",
        )
    return value
