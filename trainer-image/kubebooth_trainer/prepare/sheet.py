"""Draws the contact sheet: what will be trained on, and with which words.

It only draws pictures that were made by us and must not read what users uploaded.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from kubebooth_trainer.errors import InternalFault

MAX_PICTURES = 60
"""Pictures on the sheet; the rest is counted."""

_COLUMNS = 6
_FEWEST_COLUMNS = 3
_THUMB = 176
_GAP = 16
_LINES = 4
_LINE_HEIGHT = 17
_HEADER = 72
_INK, _FAINT, _PAPER, _RULE = (24, 26, 31), (116, 122, 133), (250, 250, 248), (222, 222, 217)
_ACCENT = (46, 110, 190)


@dataclass(frozen=True)
class Thumb:
    """One picture of the sheet."""

    path: Path
    """Picture on disk."""
    title: str
    """The user's file name, safe to print."""
    prompt: str
    """Effective prompt."""
    captioned: bool
    """Whether the prompt comes from a caption."""


def draw(thumbs: Sequence[Thumb], *, title: str, subtitle: str) -> bytes:
    """PNG bytes of the sheet; equal inputs give equal bytes."""
    told = thumbs[:MAX_PICTURES]
    columns = max(_FEWEST_COLUMNS, min(_COLUMNS, len(told)))
    rows = max(1, -(-len(told) // columns))
    prompts = [_wrapped(thumb.prompt, _font(13), _THUMB) for thumb in told]
    lines = max((len(prompt) for prompt in prompts), default=1)
    cell_height = _THUMB + 14 + _LINE_HEIGHT * (lines + 1) + _GAP
    width = _GAP + columns * (_THUMB + _GAP)
    footer = 34 if len(thumbs) > len(told) else 0
    sheet = Image.new("RGB", (width, _HEADER + rows * cell_height + footer), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _header(pen, width=width, title=title, subtitle=subtitle)
    for index, thumb in enumerate(told):
        row, column = divmod(index, columns)
        left, top = _GAP + column * (_THUMB + _GAP), _HEADER + row * cell_height
        _cell(sheet, pen, thumb, prompts[index], left=left, top=top)
    if len(thumbs) > len(told):
        text = f"and {len(thumbs) - len(told)} more pictures"
        pen.text((_GAP, sheet.height - 28), text, font=_font(14), fill=_FAINT)
    out = io.BytesIO()
    sheet.save(out, format="PNG", compress_level=6)
    return out.getvalue()


def _header(pen: ImageDraw.ImageDraw, *, width: int, title: str, subtitle: str) -> None:
    room = width - 2 * _GAP
    pen.text((_GAP, 12), _cut(title, _font(20), room), font=_font(20), fill=_INK)
    pen.text((_GAP, 38), _cut(subtitle, _font(13), room), font=_font(13), fill=_FAINT)
    pen.line((_GAP, 62, width - _GAP, 62), fill=_RULE, width=1)


def _cell(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    thumb: Thumb,
    prompt: list[str],
    *,
    left: int,
    top: int,
) -> None:
    with Image.open(thumb.path, formats=("PNG",)) as picture:
        small = ImageOps.contain(picture.convert("RGB"), (_THUMB, _THUMB), Image.Resampling.LANCZOS)
    sheet.paste(small, (left + (_THUMB - small.width) // 2, top + (_THUMB - small.height) // 2))
    pen.rectangle((left, top, left + _THUMB - 1, top + _THUMB - 1), outline=_RULE)
    y = top + _THUMB + 6
    pen.text((left, y), _cut(thumb.title, _font(11), _THUMB), font=_font(11), fill=_FAINT)
    ink = _ACCENT if thumb.captioned else _INK
    for line in prompt:
        y += _LINE_HEIGHT
        pen.text((left, y), line, font=_font(13), fill=ink)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, room: int) -> list[str]:
    lines: list[str] = []
    rest = _drawable(text).split()[:80]
    while rest and len(lines) < _LINES:
        count = 1
        while count < len(rest) and font.getlength(" ".join(rest[: count + 1])) <= room:
            count += 1
        line, rest = " ".join(rest[:count]), rest[count:]
        last = len(lines) == _LINES - 1 and rest
        lines.append(_cut(f"{line} …" if last else line, font, room))
    return lines


def _cut(text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    text = _drawable(text)[:200]
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text}…"


def _drawable(text: str) -> str:
    """The nearest text that the built-in font has letters for: `ä` is drawn as `a`."""
    decomposed = unicodedata.normalize("NFKD", text.replace("…", "\0"))
    bare = "".join(char for char in decomposed if not unicodedata.combining(char))
    return bare.replace("\0", "…")


_FONTS: dict[int, ImageFont.FreeTypeFont] = {}


def _font(size: int) -> ImageFont.FreeTypeFont:
    if size not in _FONTS:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise InternalFault("this Pillow was built without FreeType; install its wheel")
        # Basic layout: the same pixels with and without the optional shaping library.
        _FONTS[size] = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    return _FONTS[size]
