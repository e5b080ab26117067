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
HELD_OUT = (176, 38, 92)
CURVE_WIDTH, CURVE_HEIGHT, CURVE_TOP, RATE_TOP, LEFT = 960, 540, 112, 426, 78
COLOURS = {
    "TextEncoder": (176, 104, 24),
    "Concept": (120, 84, 170),
    "Denoiser": (46, 110, 190),
}


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


def loss_curve(
    points: Sequence[Point],
    *,
    title: str,
    subtitle: str,
    validations: Sequence[Point] = (),
) -> Image.Image:
    """Losses faint, their running mean bold, one colour for each stage; the learning rate below
    in a band of its own; losses on held-out pictures as dots, the lowest of them marked."""
    sheet, pen = _paper(CURVE_WIDTH, CURVE_HEIGHT, title=title, subtitle=subtitle)
    if not points:
        return sheet
    means, places = _running_means(points), _places(points)
    highest = max([*means, *(point.loss for point in validations)]) * 1.4 or 1.0
    longest = max(places[-1], 1)
    losses = _Axes(pen, CURVE_TOP, RATE_TOP - 34, highest=highest, longest=longest)
    rates = _Axes(
        pen,
        RATE_TOP,
        CURVE_HEIGHT - 46,
        highest=max(point.learning_rate for point in points) * 1.1 or 1.0,
        longest=longest,
    )
    losses.rules(parts=4, form="{:.3f}", name="loss")
    rates.rules(parts=1, form="{:.1e}", name="learning rate")
    label_at: float = LEFT + 4
    for stage, colour in COLOURS.items():
        mine = [i for i, point in enumerate(points) if point.stage == stage]
        if not mine:
            continue
        pale = tuple((c + 2 * 250) // 3 for c in colour)
        losses.line([(places[i], points[i].loss) for i in mine], colour=pale, width=1)
        losses.line([(places[i], means[i]) for i in mine], colour=colour, width=3)
        rates.line([(places[i], points[i].learning_rate) for i in mine], colour=colour, width=2)
        label_at = max(label_at, losses.x(places[mine[0]]) + 4)
        pen.text((label_at, CURVE_TOP - 18), stage, font=_font(14), fill=colour)
        label_at += pen.textlength(stage, font=_font(14)) + 16
    if validations:
        base = places[-1] - points[-1].step
        lowest = min(validations, key=lambda point: point.loss)
        told = f"held-out pictures, lowest {lowest.loss:.4f} at step {lowest.step}"
        pen.text((label_at, CURVE_TOP - 18), told, font=_font(14), fill=HELD_OUT)
        _validation_dots(losses, [(base + p.step, p.loss) for p in validations])
    pen.text((LEFT, CURVE_HEIGHT - 36), "0", font=_font(13), fill=FAINT)
    end = (CURVE_WIDTH - MARGIN, CURVE_HEIGHT - 36)
    pen.text(end, f"{longest} updates", font=_font(13), fill=FAINT, anchor="ra")
    return sheet


@dataclass(frozen=True)
class _Axes:
    """A box of a chart: updates to the right, values from 0 at its foot."""

    pen: ImageDraw.ImageDraw
    top: int
    foot: int
    highest: float
    longest: int

    def x(self, place: float) -> float:
        return LEFT + (CURVE_WIDTH - MARGIN - LEFT) * place / self.longest

    def at(self, place: float, value: float) -> tuple[float, float]:
        # NaN compares with nothing, so that it is drawn at the top like what is too high.
        share = max(value / self.highest, 0.0) if value <= self.highest else 1.0
        return self.x(place), self.foot - (self.foot - self.top) * share

    def line(
        self, values: Sequence[tuple[int, float]], *, colour: tuple[int, ...], width: int
    ) -> None:
        spots = [self.at(*value) for value in values]
        if len(spots) > 1:
            self.pen.line(spots, fill=colour, width=width, joint="curve")
            return
        x, y = spots[0]
        self.pen.ellipse((x - width, y - width, x + width, y + width), fill=colour)

    def rules(self, *, parts: int, form: str, name: str) -> None:
        for part in range(parts + 1):
            value = self.highest * part / parts
            y = self.at(0, value)[1]
            self.pen.line((LEFT, y, CURVE_WIDTH - MARGIN, y), fill=RULE, width=1)
            told = form.format(value) if value else "0"
            self.pen.text((LEFT - 8, y), told, font=_font(13), fill=FAINT, anchor="rm")
        self.pen.text(
            (CURVE_WIDTH - MARGIN, self.top - 4), name, font=_font(13), fill=FAINT, anchor="rd"
        )


def _validation_dots(axes: _Axes, values: Sequence[tuple[int, float]]) -> None:
    axes.line(values, colour=HELD_OUT, width=2)
    lowest = min(values, key=lambda value: value[1])
    for value in values:
        x, y = axes.at(*value)
        size = 6 if value == lowest else 3
        axes.pen.ellipse((x - size, y - size, x + size, y + size), fill=HELD_OUT)


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
