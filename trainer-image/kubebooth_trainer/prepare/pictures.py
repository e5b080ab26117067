"""Turns listed files into checked training pictures on disk, one by one, naming what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from kubebooth_api.runs import PrepareRun
from kubebooth_store import Conflict, Corrupt, Denied, NotFound, Refused, Store

from kubebooth_trainer.errors import Preempted
from kubebooth_trainer.prepare.captions import (
    MAX_BYTES,
    TEXT_ENCODER_WORDS,
    BadCaption,
    parse,
    prompt_for,
    words,
)
from kubebooth_trainer.prepare.decoder import Decoder, Verdict
from kubebooth_trainer.prepare.sources import (
    MAX_PICTURE_BYTES,
    Found,
    SourceFile,
    caption_of,
    check_caption_size,
)
from kubebooth_trainer.prepare.verdicts import Verdicts, shown
from kubebooth_trainer.reporter import Reporter

PERCENTAGE = 5
"""Share of a session's work that preparing counts for."""
_FETCH_TRIES = 3


@dataclass(frozen=True)
class Picture:
    """One picture that will be trained on."""

    path: Path
    """PNG on disk: square, RGB."""
    sha256: str
    """SHA-256 of the PNG file, 64 hex digits."""
    size: int
    """Bytes of the PNG file."""
    concept: str
    """Name of its concept."""
    prompt: str
    """Effective prompt."""
    captioned: bool
    """Whether the prompt comes from a caption."""
    source: str
    """The user's file name, safe to print."""


class _Vanished(Exception):
    """A listed file cannot be read any more; the message says why and the cure."""


def min_edge_of(run: PrepareRun) -> int:
    """The shortest edge a picture may have, in pixels."""
    return run.preprocess.min_edge or max(1, run.resolution // 2)


def check_pictures(
    run: PrepareRun,
    found: Found,
    *,
    store: Store,
    reporter: Reporter,
    verdicts: Verdicts,
    folder: Path,
) -> list[Picture]:
    """Fetch and render all pictures into `folder`, in order.

    Raises `Preempted`, `InternalFault` and the store's errors; bad files only become verdicts.
    """
    pictures: list[Picture] = []
    twins: dict[tuple[str, str], str] = {}
    total = len(found.pictures)
    original = folder / "original"
    with Decoder(scratch=folder) as decoder:
        for index, file in enumerate(found.pictures):
            if reporter.stop.is_set():
                raise Preempted("stopped while checking pictures; the next try starts over")
            target = folder / f"{len(pictures):04d}.png"
            if _render(run, file, original, target, decoder, store, verdicts, twins):
                caption = _caption(file, found, store, verdicts)
                pictures.append(_finished(run, file, target, caption, verdicts))
            _tell(reporter, done=index + 1, total=total)
    return pictures


def _render(
    run: PrepareRun,
    file: SourceFile,
    original: Path,
    target: Path,
    decoder: Decoder,
    store: Store,
    verdicts: Verdicts,
    twins: dict[tuple[str, str], str],
) -> bool:
    try:
        _fetch(store, file, original)
    except _Vanished as error:
        verdicts.refuse(file.name, str(error))
        return False
    try:
        made = decoder.decode(original, target, edge=run.resolution, min_edge=min_edge_of(run))
    finally:
        original.unlink(missing_ok=True)
    if isinstance(made, Verdict):
        verdicts.refuse(file.name, made.reason)
        return False
    # The same picture under two concepts is two lessons; within one it only counts double.
    twin = twins.setdefault((file.concept.name, made.pixels), file.name)
    if twin != file.name:
        verdicts.refuse(file.name, f"shows the same pixels as {shown(twin)}; remove one of them")
        return False
    smaller = min(made.width, made.height)
    if smaller < run.resolution:
        verdicts.upscaled += 1
        verdicts.doubt(
            file.name,
            f"is {made.width}x{made.height} pixels and was enlarged to {run.resolution};"
            " a larger original trains better",
        )
    return True


def _finished(
    run: PrepareRun, file: SourceFile, target: Path, caption: str, verdicts: Verdicts
) -> Picture:
    prompt = prompt_for(caption, concept=file.concept, captions=run.captions)
    if words(prompt) > TEXT_ENCODER_WORDS:
        verdicts.doubt(
            file.name,
            f"has a prompt of {words(prompt)} words and marks; the text encoder reads at most"
            f" {TEXT_ENCODER_WORDS}: put what matters first, or shorten it",
        )
    data = target.read_bytes()
    return Picture(
        path=target,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        concept=file.concept.name,
        prompt=prompt,
        captioned=bool(caption),
        source=shown(file.name),
    )


def _caption(picture: SourceFile, found: Found, store: Store, verdicts: Verdicts) -> str:
    file = caption_of(picture, found.captions)
    if file is None:
        return ""
    wrong = check_caption_size(file)
    if wrong is not None:
        verdicts.refuse(file.name, wrong)
        return ""
    try:
        caption = parse(store.read(file.key, max_bytes=MAX_BYTES))
    except NotFound:
        verdicts.refuse(file.name, "vanished while it was read; upload it again")
        return ""
    except (BadCaption, Refused) as error:
        verdicts.refuse(file.name, str(error))
        return ""
    if not caption:
        verdicts.doubt(file.name, "is an empty caption; the instance prompt is used")
    return caption


def _fetch(store: Store, file: SourceFile, path: Path) -> None:
    """Download one version of a file, whatever happens to it meanwhile. Raises `_Vanished`."""
    size: int | None = file.size
    for _ in range(_FETCH_TRIES):
        try:
            store.download(file.key, path, size=size)
        except NotFound as error:
            raise _Vanished("vanished while it was read; upload it again") from error
        except Denied as error:
            if not store.uri.startswith("file:"):
                raise
            raise _Vanished("is a link or may not be read; copy the file itself there") from error
        except Refused as error:
            raise _Vanished(f"cannot be read: {error}") from error
        except (Conflict, Corrupt):
            entry = store.stat(file.key)
            size = None if entry is None else entry.size
            if size is not None and size > MAX_PICTURE_BYTES:
                raise _Vanished("grew while it was read; export it smaller") from None
        else:
            return
    raise _Vanished("kept changing while it was read; try again when its upload is done")


def _tell(reporter: Reporter, *, done: int, total: int) -> None:
    reporter.advance("Prepare", done, total, percentage=PERCENTAGE * done // max(1, total))
