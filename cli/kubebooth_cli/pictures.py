"""Which local files are uploaded for a session, checked before a byte is sent; no network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kubebooth_store import Refused
from kubebooth_store.keys import check_key

from kubebooth_cli.errors import CliError

_MAX_PICTURE_BYTES = 64 * 1024 * 1024
_MAX_CAPTION_BYTES = 16 * 1024
_MAX_FILES = 10_000
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_CAPTION = ".txt"
_LITTER = {"thumbs.db", "desktop.ini"}
_LITTER_FOLDERS = {"__macosx"}
_EXPORT = {
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".psd",
    ".svg",
    ".raw",
    ".cr2",
    ".nef",
    ".dng",
}
_ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"}
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class LocalFile:
    """One file to upload and its name below `uploads/`."""

    path: Path
    name: str
    size: int
    """Size in bytes."""

    @property
    def is_caption(self) -> bool:
        """Whether it is a caption and no picture."""
        return self.path.suffix.lower() == _CAPTION


@dataclass(frozen=True)
class Selection:
    """What is uploaded, and what a person should know about the rest."""

    files: tuple[LocalFile, ...]
    notes: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Sum of all sizes."""
        return sum(file.size for file in self.files)


def select(paths: Iterable[Path], *, skip_others: bool) -> Selection:
    """Pictures and captions among files and folders; hidden files and litter are left out.

    Raises `CliError` that names every bad file (the first five) with its cure.
    """
    found: dict[str, LocalFile] = {}
    faults: list[str] = []
    skipped = 0
    for path, name in _named(paths):
        if _is_litter(name):
            continue
        fault = _fault_of_kind(path)
        if fault and skip_others:
            skipped += 1
            continue
        fault = fault or _fault(path, name)
        twin = found.get(name)
        if fault is None and twin is not None and twin.path != path:
            fault = f"would have the same name as {twin.path}; rename one of them"
        if fault:
            faults.append(f"{path} {fault}")
            continue
        found[name] = LocalFile(path, name, path.stat().st_size)
    if faults:
        raise _refused(faults, others=any("neither" in fault for fault in faults))
    files = tuple(found[name] for name in sorted(found))
    _check_amount(files)
    return Selection(files, tuple(_notes(files, skipped)))


def _named(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    for path in paths:
        if not path.exists():
            raise CliError(f"{path} does not exist", "check the spelling; quote names with blanks")
        if path.is_dir():
            yield from _below(path)
        else:
            yield path.resolve(), path.name


def _below(folder: Path) -> Iterator[tuple[Path, str]]:
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(names):
            path = Path(current, name)
            yield path, path.relative_to(folder).as_posix()


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER_FOLDERS


def _is_litter(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith(".") or last.endswith("~") or last.lower() in _LITTER


def _fault_of_kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in _PICTURES or suffix == _CAPTION:
        return None
    cure = "--skip-others leaves it out"
    if suffix in _EXPORT:
        cure = "export it as JPEG or PNG"
    if suffix in _ARCHIVES:
        cure = "unpack it"
    return f"is neither a picture (jpg, png, webp, bmp, gif, tiff) nor a caption (txt); {cure}"


def _fault(path: Path, name: str) -> str | None:
    """What is wrong with a file of a right kind, or None."""
    try:
        check_key(name)
    except Refused as error:
        return f"has a name that no store takes: {error}"
    if path.is_symlink() or not path.is_file():
        return "is a link or no plain file; copy the file itself there"
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_MAX_CAPTION_BYTES + 1)
    except OSError as error:
        return f"cannot be read: {error.strerror}; give yourself the right to it"
    if path.suffix.lower() == _CAPTION:
        return _caption_fault(head, size)
    if size == 0:
        return "is empty; remove it or copy it again"
    if size > _MAX_PICTURE_BYTES:
        return (
            f"has {size >> 20} MiB, at most {_MAX_PICTURE_BYTES >> 20} are read; export it smaller"
        )
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    if not is_webp and not head.startswith(_MAGIC):
        return "is no picture inside, whatever its name says; export it as JPEG or PNG"
    return None


def _caption_fault(head: bytes, size: int) -> str | None:
    if size > _MAX_CAPTION_BYTES:
        return f"has {size} bytes, too many for a caption; shorten it to 2048 characters"
    try:
        head.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "is no UTF-8 text; save the caption as UTF-8"
    return None


def _refused(faults: list[str], *, others: bool) -> CliError:
    told = "\n  ".join(faults[:5])
    more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
    head = f"{len(faults)} of the files cannot be used, so nothing was sent:\n  "
    cure = "mend or remove them, then upload again"
    return CliError(
        head + told + more, f"{cure}{', or leave them out with --skip-others' if others else ''}"
    )


def _check_amount(files: tuple[LocalFile, ...]) -> None:
    if not any(not file.is_caption for file in files):
        raise CliError("there is no picture among these paths", "name a folder with pictures")
    if len(files) > _MAX_FILES:
        raise CliError(f"{len(files)} files are more than the {_MAX_FILES} a session may have")


def _notes(files: tuple[LocalFile, ...], skipped: int) -> Iterator[str]:
    if skipped:
        yield f"{skipped} other file{'s' if skipped > 1 else ''} left out"
    pictures = {file.name for file in files if not file.is_caption}
    stems = {name.rpartition(".")[0] for name in pictures} | pictures
    for file in files:
        if file.is_caption and file.name.rpartition(".")[0] not in stems:
            yield f"{file.name} is a caption without picture"
