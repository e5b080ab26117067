"""What a file that is not a picture seems to be, from its first bytes; it never decodes."""

from __future__ import annotations

_JPEG = "export it as JPEG or PNG"
_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"hevx": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"avif": "AVIF",
    b"avis": "AVIF",
}
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (
        b"PK\x03\x04",
        f"is a zip archive, not a picture; unpack it and upload the pictures ({_JPEG})",
    ),
    (b"PK\x05\x06", "is an empty zip archive, not a picture; remove it"),
    (b"\x1f\x8b", "is a gzip archive, not a picture; unpack it and upload the pictures"),
    (b"7z\xbc\xaf'\x1c", "is a 7z archive, not a picture; unpack it and upload the pictures"),
    (b"Rar!", "is a rar archive, not a picture; unpack it and upload the pictures"),
    (b"%PDF", f"is a PDF document, not a picture; {_JPEG}"),
    (b"8BPS", f"is a Photoshop file; {_JPEG}"),
    (b"\x00\x00\x00\x0cjP", f"is JPEG 2000, which is not read; {_JPEG}"),
    (b"\xff\x0a", f"is JPEG XL, which is not read; {_JPEG}"),
    (b"\x7fELF", "is a program, not a picture; remove it"),
    (b"MZ", "is a program, not a picture; remove it"),
    (b"\x1aE\xdf\xa3", "is a video, not a picture; export single frames as JPEG or PNG"),
    (b"\xff\xd8", f"is a damaged JPEG; {_JPEG} again"),
    (b"\x89PNG", f"is a damaged PNG; {_JPEG} again"),
    (b"GIF8", f"is a damaged GIF; {_JPEG} again"),
    (b"BM", f"is a damaged BMP; {_JPEG} again"),
    (b"II*\x00", f"is a damaged TIFF; {_JPEG} again"),
    (b"MM\x00*", f"is a damaged TIFF; {_JPEG} again"),
)


def cure_for(head: bytes) -> str:
    """Says what a file that no decoder knows seems to be, and what to do about it."""
    for magic, sentence in _MAGIC:
        if head.startswith(magic):
            return sentence
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return f"is a damaged WebP; {_JPEG} again"
    if head[4:8] == b"ftyp":
        return _of_brand(head[8:12])
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return f"is an SVG drawing; {_JPEG}"
    if text.startswith((b"<!doctype", b"<html")):
        return "is a web page, not a picture; download the picture itself"
    if _is_text(head):
        return "is text, not a picture; captions are .txt files named like their picture"
    return "is no picture of a known format; use JPEG, PNG, WebP, BMP, GIF or TIFF"


def _of_brand(brand: bytes) -> str:
    name = _BRANDS.get(brand)
    if name == "AVIF":
        return f"is AVIF that cannot be read; {_JPEG}"
    if name:
        return (
            f"is {name}, which is not read; {_JPEG}"
            " (on an iPhone: Settings, Camera, Formats, Most Compatible)"
        )
    return "is a video, not a picture; export single frames as JPEG or PNG"


def _is_text(head: bytes) -> bool:
    if b"\x00" in head:
        return False
    try:
        # The head may end inside a character.
        head[: max(1, len(head) - 3)].decode()
    except UnicodeDecodeError:
        return False
    return True
