"""Draws the pictures people look at: contact sheets, before and after, the course of the loss.

Pure: pictures and words in, a picture out; equal inputs give equal pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from kubebooth_trainer.train.record import Point

INK, FAINT, PAPER, RULE = (24, 26, 31), (112, 118, 130), (250, 250, 248), (222, 222, 217)
BEFORE, AFTER = (120, 126, 138), (28, 120, 92)
MARGIN, GAP, LABEL_HEIGHT, HEADER = 28, 8, 34, 84
SMALLEST_CELL, LARGEST_CELL = 144, 256
LONGEST_LABEL = 110
COLOURS = {"TextEncoder": (176, 104, 24), "Denoiser": (46, 110, 190)}


@dataclass(frozen=True)
class Row:
    """Pictures of one prompt; `after` may be empty."""

    label: str
    note: str
    before: Sequence[Image.Image]
    after: Sequence[Image.Image] = ()


def contact_sheet(rows: Sequence[Row], *, title: str, subtitle: str) -> Image.Image:
    """One row of pictures for each prompt."""
    cell = _cell(rows[0].before[0])
    columns = max(len(row.before) for row in rows)
    width = max(2 * MARGIN + columns * (cell + GAP) - GAP, 560)
    height = HEADER + len(rows) * (LABEL_HEIGHT + cell + GAP * 2) + MARGIN
    sheet, pen = _paper(width, height, title=title, subtitle=subtitle)
    top = HEADER
    for row in rows:
        _label(pen, row, top=top, width=width)
        _strip(sheet, row.before, left=MARGIN, top=top + LABEL_HEIGHT, cell=cell)
        top += LABEL_HEIGHT + cell + GAP * 2
    return sheet


def before_after(
    rows: Sequence[Row], training: Sequence[Image.Image], *, title: str, subtitle: str
) -> Image.Image:
    """The same prompts and start noise through the base model, left, and the trained one, right;
    below them pictures that were trained on."""
    cell = _cell(rows[0].before[0])
    columns = max(len(row.before) for row in rows)
    block = columns * (cell + GAP) - GAP
    gutter = 44
    width = max(2 * MARGIN + 2 * block + gutter, 720)
    right = MARGIN + block + gutter
    heads = 30
    row_height = LABEL_HEIGHT + cell + GAP * 2
    height = HEADER + heads + (len(rows) + 1) * row_height + MARGIN
    sheet, pen = _paper(width, height, title=title, subtitle=subtitle)
    for text, left, colour in (("BEFORE", MARGIN, BEFORE), ("AFTER", right, AFTER)):
        pen.rectangle((left, HEADER, left + block, HEADER + 24), fill=colour)
        pen.text((left + 10, HEADER + 12), text, font=_font(15), fill=PAPER, anchor="lm")
    top = HEADER + heads
    for row in rows:
        _label(pen, row, top=top, width=width)
        _strip(sheet, row.before, left=MARGIN, top=top + LABEL_HEIGHT, cell=cell)
        _strip(sheet, row.after, left=right, top=top + LABEL_HEIGHT, cell=cell)
        _arrow(pen, x=MARGIN + block + gutter // 2, y=top + LABEL_HEIGHT + cell // 2)
        top += row_height
    pen.line((MARGIN, top + 4, width - MARGIN, top + 4), fill=RULE, width=1)
    shown = training[: (width - 2 * MARGIN + GAP) // (cell + GAP)]
    _label(pen, Row("Trained on", f"{len(training)} pictures", ()), top=top, width=width)
    _strip(sheet, shown, left=MARGIN, top=top + LABEL_HEIGHT, cell=cell)
    return sheet


def loss_curve(points: Sequence[Point], *, title: str, subtitle: str) -> Image.Image:
    """Losses faint, their running mean bold, one colour for each stage."""
    width, height, left, bottom = 960, 460, 78, 50
    sheet, pen = _paper(width, height, title=title, subtitle=subtitle)
    if not points:
        return sheet
    right, top = width - MARGIN, HEADER + 10
    means = _running_means(points)
    highest = max(means) * 1.6 or 1.0
    places = _places(points)
    longest = max(places[-1], 1)

    def at(place: int, loss: float) -> tuple[float, float]:
        share = min(max(loss / highest, 0.0), 1.0)
        x = left + (right - left) * place / longest
        return x, height - bottom - (height - bottom - top) * share

    for part in range(5):
        value = highest * part / 4
        y = at(0, value)[1]
        pen.line((left, y, right, y), fill=RULE, width=1)
        pen.text((left - 8, y), f"{value:.3f}", font=_font(13), fill=FAINT, anchor="rm")
    for stage, colour in COLOURS.items():
        mine = [i for i, point in enumerate(points) if point.stage == stage]
        if not mine:
            continue
        pale = tuple((c + 2 * 250) // 3 for c in colour)
        if len(mine) > 1:
            pen.line([at(places[i], points[i].loss) for i in mine], fill=pale, width=1)
            pen.line([at(places[i], means[i]) for i in mine], fill=colour, width=3)
        x = at(places[mine[0]], 0)[0]
        pen.text((x + 4, top + 2), stage, font=_font(14), fill=colour)
    pen.text((left, height - bottom + 10), "0", font=_font(13), fill=FAINT)
    end = (right, height - bottom + 10)
    pen.text(end, f"{longest} updates", font=_font(13), fill=FAINT, anchor="ra")
    return sheet


def _places(points: Sequence[Point]) -> list[int]:
    """Updates from the very start, across stages."""
    places, base, stage, last = [], 0, points[0].stage, 0
    for point in points:
        if point.stage != stage:
            base, stage = base + last, point.stage
        last = point.step
        places.append(base + point.step)
    return places


def _running_means(points: Sequence[Point]) -> list[float]:
    """Exponential means within each stage, over about a twentieth of its points."""
    means: list[float] = []
    keep, share, mean, stage = 0.0, 0.0, 0.0, ""
    for point in points:
        if point.stage != stage:
            stage, mean, share = point.stage, 0.0, 0.0
            count = sum(1 for other in points if other.stage == stage)
            keep = 1 - 1 / max(1.0, count / 20)
        mean, share = keep * mean + (1 - keep) * point.loss, keep * share + (1 - keep)
        means.append(mean / share)
    return means


def _paper(
    width: int, height: int, *, title: str, subtitle: str
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 20), _short(title), font=_font(24), fill=INK)
    pen.text((MARGIN, 52), _short(subtitle), font=_font(14), fill=FAINT)
    return sheet, pen


def _label(pen: ImageDraw.ImageDraw, row: Row, *, top: int, width: int) -> None:
    label = _short(row.label)
    pen.text((MARGIN, top + 22), label, font=_font(17), fill=INK, anchor="lm")
    end = MARGIN + pen.textlength(label, font=_font(17)) + 12
    if row.note and end + pen.textlength(row.note, font=_font(13)) < width - MARGIN:
        pen.text((end, top + 22), row.note, font=_font(13), fill=FAINT, anchor="lm")


def _strip(
    sheet: Image.Image, pictures: Sequence[Image.Image], *, left: int, top: int, cell: int
) -> None:
    for place, picture in enumerate(pictures):
        scaled = picture.convert("RGB").resize((cell, cell), Image.Resampling.LANCZOS)
        sheet.paste(scaled, (left + place * (cell + GAP), top))


def _arrow(pen: ImageDraw.ImageDraw, *, x: int, y: int) -> None:
    pen.line((x - 11, y, x + 6, y), fill=FAINT, width=3)
    pen.polygon([(x + 3, y - 8), (x + 13, y), (x + 3, y + 8)], fill=FAINT)


def _cell(picture: Image.Image) -> int:
    return min(max(picture.width, SMALLEST_CELL), LARGEST_CELL)


def _short(text: str) -> str:
    """One printable line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 1] + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
