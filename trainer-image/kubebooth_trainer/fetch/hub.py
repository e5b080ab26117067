"""What a repository of a Hugging Face hub holds at one commit, and which of it a model needs.

Only the listing is asked here; pickles, code and pictures are left where they are. It must not
know stores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urljoin

from kubebooth_api.artifacts import FileEntry
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.v1alpha1.common import HuggingFaceSource
from pydantic import ValidationError

from kubebooth_trainer.errors import DataError
from kubebooth_trainer.fetch.download import Wanted, refuse_status
from kubebooth_trainer.fetch.network import Network, Reply, Unreachable

MOST_FILES = 20_000
_PAGE_BYTES = 8 << 20
_MOST_PAGES = 50
PLAIN = (".json", ".txt", ".model")
INDEX = "model_index.json"
_INDEX_OF = re.compile(r"\.(safetensors|bin|msgpack|h5)\.index(?:\.\w+)?\.json$")
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema|ema_only)\b")
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')
_SHA1, _SHA256 = re.compile(r"^[0-9a-f]{40}$"), re.compile(r"^[0-9a-f]{64}$")


def listing(
    network: Network, hub: str, source: HuggingFaceSource, *, token: str | None
) -> tuple[Wanted, ...]:
    """All files of a repository at the source's commit.

    Raises `ConfigurationError` (missing, gated), `DataError` (no listing) and `Unreachable`.
    """
    url: str | None = (
        f"{hub.rstrip('/')}/api/models/{source.repo}/tree/{source.revision}?recursive=true"
    )
    found: list[Wanted] = []
    for _page in range(_MOST_PAGES):
        if url is None:
            return tuple(found)
        with network.get(url, token=token) as reply:
            refuse_status(reply, f"repository {source.repo} at {source.revision[:12]}")
            rows = _rows(reply, source)
            url = _next(reply, url)
        found += [_wanted(row, hub, source) for row in rows if row.get("type") == "file"]
        if len(found) > MOST_FILES:
            break
    raise DataError(
        f"repository {source.repo}: more than {MOST_FILES} files; name a model's repository",
        reason="SourceInvalid",
    )


def pinned(files: Sequence[Wanted], source: HuggingFaceSource) -> tuple[Wanted, ...]:
    """The files with the digests that the catalogue knows of this commit.

    Raises `DataError` when the hub tells other ones.
    """
    known: Mapping[str, str] = {}
    for row in BASE_MODELS.values():
        if row.source and (row.source.repo, row.source.revision) == (source.repo, source.revision):
            known = row.digests
    for file in files:
        if file.sha256 is not None and known.get(file.name, file.sha256) != file.sha256:
            raise DataError(
                f"{file.name}: the hub offers SHA-256 {file.sha256}, the catalogue knows"
                f" {known[file.name]}; the repository was altered",
                reason="DigestMismatch",
            )
    return tuple(replace(f, sha256=known.get(f.name, f.sha256)) for f in files)


def needed(
    files: Sequence[Wanted], *, repo: str, components: frozenset[str] | None
) -> tuple[Wanted, ...]:
    """The files of the Diffusers layout with these components; without, the only checkpoint.

    Of each component the plain safetensors weights are taken, else the fp16 variant. Raises
    `DataError` for a repository that has neither.
    """
    if components is not None:
        chosen = [file for file in files if file.name == INDEX]
        for component in sorted(components):
            inside = [f for f in files if f.name.rpartition("/")[0] == component]
            chosen += [f for f in inside if f.name.endswith(PLAIN) and not _INDEX_OF.search(f.name)]
            chosen += _weights(inside)
        return tuple(chosen)
    single = [f for f in files if "/" not in f.name and f.name.endswith(".safetensors")]
    if len(single) == 1:
        return (single[0],)
    names = ", ".join(f.name for f in single[:4])
    told = f"several checkpoints ({names})" if single else f"no {INDEX} and no safetensors file"
    raise DataError(
        f"repository {repo} has {told}; name one with the Diffusers layout, or the file itself in"
        " url.href",
        reason="SourceInvalid",
    )


def _weights(files: Sequence[Wanted]) -> list[Wanted]:
    """Safetensors weights of one component in one variant, with the index of their shards."""
    tensors = [f for f in files if f.name.endswith((".safetensors", ".json")) and _is_weights(f)]
    plain = [f for f in tensors if not _VARIANT.search(f.name)]
    if any(f.name.endswith(".safetensors") for f in plain):
        return plain
    return [f for f in tensors if (found := _VARIANT.search(f.name)) and found[1] == "fp16"]


def _is_weights(file: Wanted) -> bool:
    index = _INDEX_OF.search(file.name)
    return file.name.endswith(".safetensors") or (index is not None and index[1] == "safetensors")


def _wanted(row: dict[str, Any], hub: str, source: HuggingFaceSource) -> Wanted:
    path, size = row.get("path"), row.get("size")
    lfs = row.get("lfs") if isinstance(row.get("lfs"), dict) else {}
    sha256, sha1 = (lfs or {}).get("oid"), row.get("oid")
    try:
        entry = FileEntry(path=str(path), size=int(str(size)), sha256="0" * 64)
    except (ValidationError, ValueError) as error:
        raise DataError(
            f"repository {source.repo}: the hub lists {str(path)[:100]!r}, which is no plain"
            " relative path with a size",
            reason="SourceInvalid",
        ) from error
    where = f"{source.repo}/resolve/{source.revision}/{quote(entry.path)}"
    return Wanted(
        url=f"{hub.rstrip('/')}/{where}",
        name=entry.path,
        size=entry.size,
        sha256=sha256 if isinstance(sha256, str) and _SHA256.match(sha256) else None,
        git_sha1=sha1 if isinstance(sha1, str) and _SHA1.match(sha1) else None,
    )


def _rows(reply: Reply, source: HuggingFaceSource) -> list[dict[str, Any]]:
    data = b""
    for block in reply.body.stream(1 << 16):
        data += block
        if len(data) > _PAGE_BYTES:
            break
    length = reply.headers.get("content-length", "")
    if length.isdecimal() and len(data) < int(length):
        raise Unreachable(f"repository {source.repo}: the listing broke off")
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"repository {source.repo}: the hub's listing is no JSON; is hub.endpoint a hub's"
            " address?",
            reason="SourceInvalid",
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"repository {source.repo}: the hub's listing is no list of files; is hub.endpoint the"
            " address of a hub?",
            reason="SourceInvalid",
        )
    return rows


def _next(reply: Reply, url: str) -> str | None:
    """Address of the next page; a hub only ever names itself."""
    found = _NEXT.search(reply.headers.get("link", ""))
    if found is None:
        return None
    target: str = urljoin(url, found[1])
    if target.split("/")[2] != url.split("/")[2]:
        raise DataError("the hub's listing goes on at another host", reason="SourceInvalid")
    return target
