"""One hostile picture file becomes one training picture, or a sentence that says why not.

It must not know stores, sessions or processes: it runs inside the decoder's child, which bounds
its memory and time.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError

from kubebooth_trainer.prepare.framing import CENTRE, Framing, NotOfTheShape, cut_out
from kubebooth_trainer.prepare.shapes import Cut, Shape
from kubebooth_trainer.prepare.sniff import cure_for

MAX_PIXELS = 100_000_000
"""Width times height above which a picture is not decoded."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What may be decoded; the content decides, never the file's extension."""

_ORIENTATION = ExifTags.Base.Orientation
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS = {5, 6, 7, 8}
_MIRRORS_X = {2, 3, 7, 8}
_MIRRORS_Y = {3, 4, 6, 7}
_SIXTEEN_BITS = {"I;16", "I;16B", "I;16L", "I;16N"}
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What Pillow's readers raise on hostile bytes; `MemoryError` is told apart."""


class Refused(Exception):
    """The file is not a usable picture; the message says what is wrong and the cure."""


@dataclass(frozen=True)
class Rendered:
    """A usable picture."""

    image: Image.Image
    """RGB, upright, sRGB, of one of the shapes."""
    width: int
    """Width of the file's picture before turning and cropping, in pixels."""
    height: int
    """Height of the file's picture before turning and cropping, in pixels."""
    original: tuple[int, int]
    """(height, width) of the upright picture before cropping, in pixels."""
    cut: Cut
    """What of the upright picture was taken."""


def render(
    path: Path, *, shapes: tuple[Shape, ...], min_edge: int, framing: Framing = CENTRE
) -> Rendered:
    """The upright picture of a file in the one of the shapes that fits it best, as RGB.

    Only the first frame counts. Transparency becomes white. Raises `Refused`, or `MemoryError`
    within a memory limit.
    """
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        # Pillow warns of odd metadata; a picture that decodes is good enough to learn from.
        warnings.simplefilter("ignore")
        with path.open("rb") as file, _open(file) as image:
            width, height = image.size
            _check_size(width, height, min_edge=min_edge)
            _load(image)
            made, original, cut = _cut_out(image, shapes, framing)
            return Rendered(made, width, height, original, cut)


def _open(file: io.BufferedReader) -> Image.Image:
    head = file.read(4096)
    file.seek(0)
    if not head:
        raise Refused("is empty (0 bytes); upload it again")
    try:
        Image.init()
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        if isinstance(error, Image.DecompressionBombError):
            raise Refused(_too_many_pixels()) from error
        raise Refused(cure_for(head)) from error
    except _BROKEN as error:
        raise Refused(_damaged(error)) from error


def _check_size(width: int, height: int, *, min_edge: int) -> None:
    if width * height > MAX_PIXELS:
        raise Refused(_too_many_pixels(width, height))
    if min(width, height) < min_edge:
        raise Refused(
            f"is {width}x{height} pixels, but the shorter edge must have at least {min_edge};"
            " use a larger original or lower preprocess.minEdge"
        )


def _load(image: Image.Image) -> None:
    try:
        image.seek(0)
        image.load()
    except Image.DecompressionBombError as error:
        raise Refused(_too_many_pixels()) from error
    except _BROKEN as error:
        raise Refused(_damaged(error)) from error


def _cut_out(
    image: Image.Image, shapes: tuple[Shape, ...], framing: Framing
) -> tuple[Image.Image, tuple[int, int], Cut]:
    """The picture, (height, width) of the upright original, and what of that was taken."""
    turn = _orientation(image)
    width, height = reversed(image.size) if turn in _SWAPS else image.size
    profile = image.info.get("icc_profile")
    deep = image.mode in _SIXTEEN_BITS or image.mode in {"I", "F"}
    scale = _grey_scale(image) if deep else 1.0
    plain = _plain(image)

    def upright(cut: Cut, *, gap: float | None = None) -> Image.Image:
        """A cut of the upright picture in its shape, as RGB."""
        across, down = cut.shape.width, cut.shape.height
        size = (down, across) if turn in _SWAPS else (across, down)
        box = file_box(cut, *image.size, turn=turn)
        small = plain.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=gap)
        if small.mode == "F":
            small = small.point(lambda value: value * scale + 0.5).convert("L")
        flat = _to_srgb(_on_white(small), profile)
        return flat.transpose(_TURNS[turn]) if turn in _TURNS else flat

    try:
        made, cut = cut_out(upright, height, width, shapes=shapes, framing=framing)
    except NotOfTheShape as error:
        raise Refused(
            f"is {error}; crop it yourself, or set preprocess.crop to Smart, Center or Pad"
        ) from error
    # Profiles and comments of the original would otherwise travel into the file we write.
    made.info = {}
    return made, (height, width), cut


def file_box(cut: Cut, width: int, height: int, *, turn: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a cut of the upright picture, in whole pixels of the file.

    `width` and `height` are the file's; `turn` is the EXIF orientation that makes it upright.
    """
    upright_x, upright_y = (cut.left, cut.width), (cut.top, cut.height)
    (left, across), (top, down) = (
        (upright_y, upright_x) if turn in _SWAPS else (upright_x, upright_y)
    )
    left = width - across - left if turn in _MIRRORS_X else left
    top = height - down - top if turn in _MIRRORS_Y else top
    return left, top, left + across, top + down


def _orientation(image: Image.Image) -> int:
    # Read after loading: the TIFF reader turns pictures itself and then drops the tag.
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _plain(image: Image.Image) -> Image.Image:
    """The same picture in L, F, RGB, RGBA or CMYK, which resize without loss."""
    if image.mode in _SIXTEEN_BITS:
        return image.convert("I").convert("F")
    if image.mode in {"I", "F"}:
        return image.convert("F")
    if "transparency" in image.info or image.mode in {"LA", "La", "PA", "RGBa"}:
        return image.convert("RGBA")
    if image.mode in {"L", "RGB", "RGBA", "CMYK"}:
        return image
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise Refused(f"has colours that cannot be read ({image.mode}); save it as RGB") from error


def _grey_scale(image: Image.Image) -> float:
    """Factor that brings grey of more than 8 bits, or float, to 0..255 instead of clipping it."""
    if image.mode in _SIXTEEN_BITS:
        return 1 / 257
    low, high = image.getextrema()
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        raise Refused("has grey values that cannot be read; save it with 8 bits a channel")
    if not (0 <= low <= high <= 65535):
        raise Refused(
            f"has grey values from {low:g} to {high:g}, not 0 to 65535; save it with 8 bits"
        )
    if image.mode == "I":
        return 1 / 257
    return 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 257


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    if isinstance(profile, bytes) and profile and image.mode in {"RGB", "CMYK", "L"}:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            # A broken or foreign profile is ignored, as viewers do.
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    if converted is None:
        raise Refused("has Lab colours that cannot be read; save it as RGB")
    return converted


def _too_many_pixels(width: int = 0, height: int = 0) -> str:
    size = f"claims {width}x{height} pixels" if width else "claims too many pixels"
    return f"{size}; at most {MAX_PIXELS // 1_000_000} million are decoded: scale it down"


def _damaged(error: Exception) -> str:
    text = " ".join(str(error).split())[:160]
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"is cut off ({text or 'unexpected end'}); upload it again"
    return f"is damaged ({text or type(error).__name__}); upload it again, or export it as JPEG"
