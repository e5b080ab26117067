"""Finds the user's files in the store and tells pictures from captions and litter.

It decides by names and sizes only and must not open a picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kubebooth_api import layout
from kubebooth_api.runs import PrepareRun
from kubebooth_api.v1alpha1.dataset import Concept
from kubebooth_store import Refused, Store

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.prepare.captions import MAX_BYTES as MAX_CAPTION_BYTES
from kubebooth_trainer.prepare.verdicts import Verdicts, shown

MAX_FILES = 10_000
"""Files a session may have in all its sources."""
MAX_LISTED = 40_000
"""Entries that are looked at, litter and all, before listing stops."""
MAX_PICTURE_BYTES = 64 * 1024 * 1024
"""Bytes one picture file may have."""

_LITTER = {".ds_store", "thumbs.db", "desktop.ini", ".directory", ".localized", ".gitkeep"}
_LITTER_FOLDERS = {"__macosx", ".ipynb_checkpoints", ".git", "@eadir", ".trash", ".trashes"}


@dataclass(frozen=True)
class SourceFile:
    """One file of the user's as the store lists it."""

    concept: Concept
    key: str
    """Key in the store."""
    name: str
    """Name below its source, as the user knows it; hostile."""
    size: int
    """Size in bytes when it was listed."""


@dataclass(frozen=True)
class Found:
    """What a session has to work with, in the order of concept name and key."""

    pictures: tuple[SourceFile, ...]
    captions: dict[str, SourceFile]
    """Caption files by concept name and key without `.txt`, see `caption_of`."""


def find(run: PrepareRun, store: Store, verdicts: Verdicts, *, field: str | None = None) -> Found:
    """List all sources; `field` names where they are written, if not in concepts.

    Raises `ConfigurationError`, `DataError` (too many) and store errors.
    """
    try:
        files = _without_litter(_listed(run, store, field), verdicts)
    except Refused as error:
        # A name on disk that no key can have; the message names it and the cure.
        raise DataError(str(error), reason="BadFiles") from error
    captions = {
        _caption_slot(file.concept, file.key[: -len(".txt")]): file
        for file in files
        if _is_caption(file)
    }
    pictures = []
    for file in files:
        if _is_caption(file):
            continue
        if file.size > MAX_PICTURE_BYTES:
            verdicts.refuse(
                file.name,
                f"has {file.size / 1_048_576:.0f} MiB; at most"
                f" {MAX_PICTURE_BYTES // 1_048_576} MiB are read: export it smaller",
            )
            continue
        pictures.append(file)
    if run.captions.mode == "None":
        return Found(tuple(pictures), {})
    _point_out_orphans(files, captions, verdicts)
    return Found(tuple(pictures), captions)


def caption_of(picture: SourceFile, captions: dict[str, SourceFile]) -> SourceFile | None:
    """The caption file of a picture: `a.txt`, else `a.jpg.txt`."""
    for stem in (_stem(picture.key), picture.key):
        found = captions.get(_caption_slot(picture.concept, stem))
        if found is not None:
            return found
    return None


def check_caption_size(file: SourceFile) -> str | None:
    """What is wrong with the size of a caption file, or None."""
    if file.size <= MAX_CAPTION_BYTES:
        return None
    return f"has {file.size} bytes, more than a caption may have; shorten it to 2048 characters"


def _listed(run: PrepareRun, store: Store, field: str | None) -> list[SourceFile]:
    files: list[SourceFile] = []
    for concept in sorted(run.concepts, key=lambda concept: concept.name):
        seen: dict[str, SourceFile] = {}
        for prefix in _prefixes(run, concept, field):
            for key, size in _entries(store, prefix):
                name = key[len(prefix) :].lstrip("/") or key.rsplit("/", 1)[-1]
                seen.setdefault(key, SourceFile(concept, key, name, size))
                if len(seen) + len(files) > MAX_LISTED:
                    raise _too_many()
        files.extend(seen[key] for key in sorted(seen, key=str.encode))
    return files


def _entries(store: Store, prefix: str) -> Iterable[tuple[str, int]]:
    found = False
    for entry in store.list(prefix):
        found = True
        # S3 consoles mark folders with empty keys that end in a slash.
        if not entry.key.endswith("/"):
            yield entry.key, entry.size
    if not found:
        single = store.stat(prefix)
        if single is not None:
            yield single.key, single.size


def _prefixes(run: PrepareRun, concept: Concept, field: str | None) -> list[str]:
    if not concept.sources:
        return [layout.uploads(run.session.namespace, run.session.name)]
    prefixes = []
    for index, source in enumerate(concept.sources):
        where = f"{field or f'concepts[{concept.name}].sources'}[{index}]"
        if source.store is None:
            kind = next(iter(source.dump()), "nothing")
            raise ConfigurationError(
                f"{where}.{kind}: this version reads pictures from the store only; upload them"
                f" (kubebooth upload FOLDER --session {run.session.name}) and leave sources out, or"
                f" name {where}.store.key"
            )
        prefixes.append(
            own_key(source.store.key, where=f"{where}.store.key", namespace=run.session.namespace)
        )
    return prefixes


def own_key(key: str, *, where: str, namespace: str) -> str:
    """A key of the user's, checked: it stays in the store and out of other namespaces."""
    parts = key.rstrip("/").split("/")
    if any(part in {"", ".", ".."} for part in parts):
        raise ConfigurationError(
            f"{where}: {shown(key)!r} has an empty, '.' or '..' part; write the plain key"
        )
    if parts[0] == "sessions" and (len(parts) < 2 or parts[1] != namespace):
        raise ConfigurationError(
            f"{where}: {shown(key)!r} belongs to sessions of another namespace; upload the files"
            " for this one"
        )
    return "/".join(parts)


def _without_litter(files: list[SourceFile], verdicts: Verdicts) -> list[SourceFile]:
    kept = [file for file in files if not is_litter(file.name)]
    verdicts.litter += len(files) - len(kept)
    if len(kept) > MAX_FILES:
        raise _too_many()
    return kept


def is_litter(name: str) -> bool:
    """Whether a file is what operating systems and editors leave behind."""
    *folders, last = name.lower().split("/")
    if last in _LITTER or last.startswith("._") or last.endswith("~"):
        return True
    return any(folder in _LITTER_FOLDERS for folder in folders)


def _point_out_orphans(
    files: list[SourceFile], captions: dict[str, SourceFile], verdicts: Verdicts
) -> None:
    wanted = set()
    for file in files:
        if not _is_caption(file):
            wanted.add(_caption_slot(file.concept, _stem(file.key)))
            wanted.add(_caption_slot(file.concept, file.key))
    for slot, file in captions.items():
        if slot not in wanted:
            verdicts.doubt(
                file.name, "is a caption without picture; name it like its picture, or remove it"
            )


def _is_caption(file: SourceFile) -> bool:
    return file.key.lower().endswith(".txt")


def _stem(key: str) -> str:
    folder, slash, last = key.rpartition("/")
    stem, dot, _ = last.rpartition(".")
    return folder + slash + (stem if dot and stem else last)


def _caption_slot(concept: Concept, stem: str) -> str:
    return f"{concept.name}:{stem}"


def _too_many() -> DataError:
    return DataError(
        f"there are more than {MAX_FILES} files; a session trains on at most that many pictures:"
        " point concepts[].sources at a smaller folder"
    )
