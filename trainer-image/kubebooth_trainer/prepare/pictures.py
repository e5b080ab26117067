"""Turns listed files into checked training pictures on disk, one by one, naming what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from kubebooth_api.runs import PrepareRun
from kubebooth_store import Conflict, Corrupt, Denied, NotFound, Refused, Store

from kubebooth_trainer.errors import Preempted
from kubebooth_trainer.prepare.captions import (
    MAX_BYTES,
    BadCaption,
    parse,
    prompt_for,
)
from kubebooth_trainer.prepare.decoder import Decoded, Decoder, Verdict
from kubebooth_trainer.prepare.framing import Framing
from kubebooth_trainer.prepare.lints import findings
from kubebooth_trainer.prepare.shapes import Shape
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
    """PNG on disk: RGB."""
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
    original: tuple[int, int]
    """(height, width) of the user's upright picture in pixels."""
    crop: tuple[int, int]
    """(top, left) of the cut after resizing, in pixels."""
    target: Shape
    """Shape of the PNG."""


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
    shapes: tuple[Shape, ...],
    share: Share,
) -> list[Picture]:
    """Fetch and render all pictures into `folder`, in order, each in the shape that fits it best.

    Raises `Preempted`, `InternalFault` and the store's errors; bad files only become verdicts.
    """
    checker = _Checker(run, found, store, verdicts, folder, shapes)
    folder.mkdir(parents=True, exist_ok=True)
    framing = Framing(run.preprocess.crop, run.preprocess.focus)
    with Decoder(scratch=folder, framing=framing) as decoder:
        for index, file in enumerate(found.pictures):
            if reporter.stop.is_set():
                raise Preempted("stopped while checking pictures; the next try starts over")
            checker.check(file, decoder)
            done = share.before + index + 1
            reporter.advance(
                "Prepare", done, share.total, percentage=PERCENTAGE * done // share.total
            )
    return checker.pictures


@dataclass(frozen=True)
class Share:
    """Which part of all pictures is checked, for progress: files before these, and all."""

    before: int
    total: int


@dataclass
class _Checker:
    """What was seen so far: pictures taken, their pixels and captions."""

    run: PrepareRun
    found: Found
    store: Store
    verdicts: Verdicts
    folder: Path
    shapes: tuple[Shape, ...]
    pictures: list[Picture] = field(default_factory=list)
    pixels: dict[tuple[str, str], str] = field(default_factory=dict)
    captions: dict[tuple[str, str], str] = field(default_factory=dict)

    def check(self, file: SourceFile, decoder: Decoder) -> None:
        """Take a picture, or tell why not."""
        target = self.folder / f"{len(self.pictures):04d}.png"
        made = self._rendered(file, target, decoder)
        if isinstance(made, Verdict):
            self.verdicts.refuse(file.name, made.reason)
            return
        if not self._unlike_others(file, made):
            return
        caption = _caption(file, self.found, self.store, self.verdicts)
        prompt = self._prompt(file, caption)
        if prompt is None:
            return
        if made.enlarged:
            self._tell_enlarged(file, made)
        data = target.read_bytes()
        self.pictures.append(
            Picture(
                path=target,
                sha256=hashlib.sha256(data).hexdigest(),
                size=len(data),
                concept=file.concept.name,
                prompt=prompt,
                captioned=bool(caption),
                source=shown(file.name),
                original=made.original,
                crop=made.crop,
                target=made.target,
            )
        )

    def _rendered(self, file: SourceFile, target: Path, decoder: Decoder) -> Decoded | Verdict:
        original = self.folder / "original"
        try:
            _fetch(self.store, file, original)
            return decoder.decode(
                original, target, shapes=self.shapes, min_edge=min_edge_of(self.run)
            )
        except _Vanished as error:
            return Verdict(str(error))
        finally:
            original.unlink(missing_ok=True)

    def _unlike_others(self, file: SourceFile, made: Decoded) -> bool:
        # The same picture under two concepts is two lessons; within one it only counts double.
        twin = self.pixels.setdefault((file.concept.name, made.pixels), file.name)
        if twin == file.name:
            return True
        reason = f"shows the same pixels as {shown(twin)}; remove one of them"
        return self.verdicts.find(self.run.preprocess.duplicates, file.name, reason)

    def _prompt(self, file: SourceFile, caption: str) -> str | None:
        """The effective prompt, or None when a finding leaves the picture out."""
        asked = self.run.captions
        prompt = prompt_for(caption, concept=file.concept, captions=asked, file_name=file.name)
        twin = self.captions.setdefault((file.concept.name, caption), file.name)
        stays = True
        for sentence in findings(
            prompt,
            caption=caption,
            twin=shown(twin) if twin != file.name else None,
            concept=file.concept,
            captions=asked,
        ):
            stays = self.verdicts.find(asked.lint, file.name, sentence) and stays
        return prompt if stays else None

    def _tell_enlarged(self, file: SourceFile, made: Decoded) -> None:
        square = made.target.height == made.target.width
        size = str(made.target.width) if square else made.target.told
        self.verdicts.upscaled += 1
        self.verdicts.doubt(
            file.name,
            f"is {made.width}x{made.height} pixels and was enlarged to {size};"
            " a larger original trains better",
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
