"""Puts checked local files into the store: same content is skipped, other content never replaced
unless told, nothing is ever deleted. It must not know where the store is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kubebooth_api.artifacts import Manifest
from kubebooth_store import Conflict, Entry, OnBytes, Store, publish_files
from kubebooth_store.content import file_sha256

from kubebooth_cli.errors import CliError
from kubebooth_cli.pictures import LocalFile

_UNSAFE = {".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".py", ".so", ".exe", ".sh", ".onnx"}


@dataclass(frozen=True)
class Sent:
    """What an upload did."""

    uploaded: int
    skipped: int
    """Files that were there already, byte for byte."""
    replaced: int


def upload_pictures(
    store: Store,
    prefix: str,
    files: Iterable[LocalFile],
    *,
    replace: bool,
    on_bytes: OnBytes,
) -> Sent:
    """Upload files below a prefix, a few at once.

    Raises `CliError` before anything is sent when a name is taken by other content and `replace`
    is off.
    """
    todo = list(files)
    with ThreadPoolExecutor(store.parallel) as pool:
        there = list(pool.map(lambda file: store.stat(f"{prefix}/{file.name}"), todo))
        pairs = list(zip(todo, there, strict=True))
        same = [entry is not None and _is_same(file, entry) for file, entry in pairs]
        taken = [
            file.name
            for (file, entry), equal in zip(pairs, same, strict=True)
            if entry is not None and not equal
        ]
        if taken and not replace:
            raise _taken(taken)

        def send(file: LocalFile) -> None:
            store.upload(file.path, f"{prefix}/{file.name}")
            on_bytes(file.size)

        missing = []
        for file, equal in zip(todo, same, strict=True):
            if equal:
                on_bytes(file.size)
            else:
                missing.append(file)
        list(pool.map(send, missing))
    return Sent(uploaded=len(missing) - len(taken), skipped=sum(same), replaced=len(taken))


def _is_same(file: LocalFile, entry: Entry) -> bool:
    """Equal content; where the store tells no digest, a file of equal size is taken as another."""
    return entry.size == file.size and entry.sha256 == file_sha256(file.path)


def _taken(names: list[str]) -> CliError:
    told = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return CliError(
        f"the session already has other content under the same name: {told}",
        "rename your files, or give --replace to put yours in their place",
    )


def model_files(folder: Path) -> dict[str, Path]:
    """Files of a model in Diffusers layout by relative path; hidden ones are left out.

    Raises `CliError` for a folder without `model_index.json`, links, pickles and programs.
    """
    if not folder.is_dir():
        raise CliError(f"{folder} is no folder", "name the folder that holds model_index.json")
    if not (folder / "model_index.json").is_file():
        raise CliError(
            f"{folder} holds no model_index.json, so it is no model in Diffusers layout",
            "name the folder of a model saved with save_pretrained",
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")) or name == "manifest.json":
            continue
        if path.is_symlink():
            raise CliError(f"{path} is a link", "copy the file itself there (cp -rL)")
        if path.is_dir():
            continue
        if path.suffix.lower() in _UNSAFE:
            raise CliError(
                f"{path} could run code when loaded; only safetensors and text are taken",
                "save the model with safe_serialization=True and remove the other files",
            )
        found[name] = path
    return found


def publish_model(
    store: Store, prefix: str, files: dict[str, Path], *, on_bytes: Callable[[int], None]
) -> Manifest:
    """Publish a model under its name. Raises `CliError` when the name has another model."""
    try:
        return publish_files(store, prefix, files, kind="model", on_bytes=on_bytes)
    except Conflict as error:
        raise CliError(
            f"the store has another model at {store.uri_of(prefix)}, which is left as it is",
            "choose another --model name",
        ) from error
