"""The two kinds of upload, from checked arguments to a closing line."""

from __future__ import annotations

import re
from pathlib import Path

from kubebooth_api import layout

from kubebooth_cli import pictures, uploading
from kubebooth_cli.cluster import Where, connect
from kubebooth_cli.errors import CliError
from kubebooth_cli.locating import Flags
from kubebooth_cli.opening import opened
from kubebooth_cli.terminal import count, err, say, transfer
from kubebooth_cli.text import plain, size

_DNS_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")


def send_pictures(
    where: Where,
    flags: Flags,
    paths: list[Path],
    session: str,
    *,
    replace: bool,
    skip_others: bool,
) -> None:
    """Check and upload pictures and captions for a session that need not exist yet."""
    _check_name(session, "--session")
    selection = pictures.select(paths, skip_others=skip_others)
    cluster = None if flags.complete and where.namespace else connect(where)
    namespace = where.namespace or (cluster.namespace if cluster else "default")
    known = cluster.find_session(session) if cluster and not flags.complete else None
    spec = known.get("spec") if known else None
    prefix = layout.uploads(namespace, session)
    with (
        opened(cluster, spec, flags, where) as store,
        transfer("uploading", selection.size_bytes) as tell,
    ):
        sent = uploading.upload_pictures(
            store, prefix, selection.files, replace=replace, on_bytes=tell
        )
    for note in selection.notes:
        err.print(f"note: {plain(note)}", markup=False, style="yellow")
    captions = sum(file.is_caption for file in selection.files)
    shown = count(len(selection.files) - captions, "picture")
    shown += f" and {count(captions, 'caption')}" if captions else ""
    done = f"{sent.uploaded} uploaded, {sent.skipped} there already"
    done += f", {sent.replaced} replaced" if sent.replaced else ""
    say(f"{shown} for session {session} in {namespace}: {done}")


def send_model(where: Where, flags: Flags, folder: Path, model: str) -> None:
    """Check and publish a model folder."""
    _check_name(model, "--model")
    files = uploading.model_files(folder)
    total = sum(path.stat().st_size for path in files.values())
    cluster = None if flags.complete else connect(where)
    prefix = layout.model(model)
    with opened(cluster, None, flags, where) as store, transfer("uploading", total) as tell:
        manifest = uploading.publish_model(store, prefix, files, on_bytes=tell)
    say(
        f"{prefix}: {count(len(manifest.files), 'file')}, {size(manifest.size_bytes)}, "
        f"{manifest.digest[:19]}; use it as baseModel.source.store.key"
    )


def _check_name(name: str, option: str) -> None:
    if not _DNS_NAME.match(name):
        raise CliError(
            f"{option} {name!r} is no name that Kubernetes takes",
            "use lower-case letters, digits and inner dashes",
        )
