"""Files that users upload by accident or malice, made here byte by byte, with what must be said."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms, ImageDraw

EDGE = 64


@dataclass(frozen=True)
class Case:
    """One file; `says` is part of the refusal, or None for a picture that must be taken."""

    name: str
    data: bytes
    says: str | None = None


def picture(seed: int = 0, *, size: tuple[int, int] = (96, 80), mode: str = "RGB") -> Image.Image:
    """A small picture that differs by seed."""
    chance = random.Random(seed)
    image = Image.new("RGB", size, tuple(chance.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = chance.randrange(size[0]), chance.randrange(size[1])
        fill = tuple(chance.randrange(256) for _ in range(3))
        pen.ellipse((x - 20, y - 20, x + 20, y + 20), fill=fill)
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """File bytes."""
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    """A PNG chunk."""
    sum_ = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", sum_)


def png(width: int, height: int, *, data: bytes = b"", bits: int = 8, color: int = 2) -> bytes:
    """A PNG that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def sparse_png(edge: int) -> bytes:
    """A real one-bit picture of edge × edge pixels in a few kilobytes."""
    row = b"\x00" * (1 + -(-edge // 8))
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(edge)) + packer.flush()
    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation: int) -> bytes:
    """EXIF bytes with an orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def cut(data: bytes, share: float = 0.6) -> bytes:
    """The beginning of a file."""
    return data[: int(len(data) * share)]


def zipped(name: str = "a.jpg") -> bytes:
    """A zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, encoded(picture(), "JPEG"))
    return out.getvalue()


def bad() -> Iterator[Case]:
    """Files that must be refused, each with what the refusal says."""
    noisy = Image.frombytes("RGB", (120, 120), random.Random(7).randbytes(120 * 120 * 3))
    for kind, ending in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("GIF", "gif"),
        ("TIFF", "tif"),
        ("AVIF", "avif"),
    ):
        yield Case(f"truncated.{ending}", cut(encoded(noisy, kind)), "")
        yield Case(f"header only.{ending}", encoded(noisy, kind)[:24], "")
    yield Case("truncated deflate.tiff", cut(encoded(noisy, "TIFF", compression="tiff_lzw")), "")
    yield Case("empty.jpg", b"", "empty (0 bytes)")
    yield Case("notes.png", b"this is my cat, 2021\n" * 9, "is text")
    yield Case("pictures.png", zipped(), "zip archive")
    yield Case("page.jpg", b"<!DOCTYPE html><html><body>403</body></html>", "web page")
    yield Case("scan.jpg", b"%PDF-1.7\n" + b"\x00" * 99, "PDF")
    yield Case("logo.png", b'<?xml version="1.0"?><svg xmlns="x"></svg>', "SVG")
    yield Case("clip.jpg", b"\x00\x00\x00\x18ftypisom" + b"\x00" * 99, "video")
    yield Case("phone.heic", b"\x00\x00\x00\x18ftypheic" + b"\x00" * 99, "Most Compatible")
    yield Case("layers.psd", b"8BPS\x00\x01" + b"\x00" * 99, "Photoshop")
    yield Case("a.out", b"\x7fELF\x02\x01\x01" + b"\x00" * 99, "program")
    yield Case("photos.tar.gz", b"\x1f\x8b\x08" + b"\x00" * 99, "gzip")
    yield Case("noise.jpg", random.Random(1).randbytes(5000), "no picture of a known format")
    yield Case("unknown.xyz", b"\x01\x02\x03\x00" * 50, "no picture of a known format")
    yield Case("bomb.png", png(50_000, 50_000, data=b"\x00" * 999), "million are decoded")
    yield Case("wide.png", png(2**31 - 1, 1), "")
    yield Case("nothing wide.png", png(0, 64), "")
    yield Case("no data.png", png(80, 80), "")
    yield Case("bad crc.png", _bad_crc(), "damaged")
    yield Case("bomb.gif", b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x00\x00\x00,", "")
    yield Case("bomb.bmp", _bmp(60_000, 60_000), "million are decoded")
    yield Case("minus.bmp", _bmp(-5, 70), "")
    yield Case("bomb.jpg", _huge_jpeg(), "million are decoded")
    yield Case("bomb.webp", _huge_webp(), "")
    yield Case("bomb.tif", _tiff(60_000, 60_000), "million are decoded")
    yield Case("loop.tif", _looping_tiff(), "")
    yield Case("text bomb.png", _text_bomb(), "")
    yield Case("tiny.png", encoded(picture(size=(20, 90)), "PNG"), "shorter edge")
    yield Case("one pixel.png", encoded(picture(size=(1, 1)), "PNG"), "shorter edge")
    yield Case("depth.tif", encoded(Image.new("F", (80, 80), -4.0), "TIFF"), "grey values")


def good() -> Iterator[Case]:
    """Odd pictures that must be taken."""
    yield Case("plain.jpg", encoded(picture(1), "JPEG", quality=95))
    yield Case("plain.png", encoded(picture(2), "PNG"))
    yield Case("plain.webp", encoded(picture(3), "WEBP", lossless=True))
    yield Case("plain.bmp", encoded(picture(4), "BMP"))
    yield Case("plain.gif", encoded(picture(5), "GIF"))
    yield Case("plain.tiff", encoded(picture(6), "TIFF"))
    yield Case("plain.avif", encoded(picture(7), "AVIF"))
    yield Case("a jpeg.png", encoded(picture(8), "JPEG"))
    yield Case("no extension", encoded(picture(9), "PNG"))
    yield Case("cmyk.jpg", encoded(picture(10, mode="CMYK"), "JPEG", quality=95))
    yield Case("grey.png", encoded(picture(11, mode="L"), "PNG"))
    yield Case("bits.png", encoded(picture(12, mode="1"), "PNG"))
    yield Case("palette.png", encoded(picture(13, mode="P"), "PNG"))
    yield Case("alpha.png", encoded(_half_clear(14), "PNG"))
    yield Case("palette alpha.png", encoded(_half_clear(15).quantize(32), "PNG"))
    yield Case("grey alpha.png", encoded(_half_clear(16).convert("LA"), "PNG"))
    yield Case("deep grey.png", encoded(_deep_grey(), "PNG"))
    yield Case("deep grey big-endian.tif", encoded(_deep_grey(">"), "TIFF"))
    yield Case("float.tif", encoded(_deep_grey().convert("I").convert("F"), "TIFF"))
    yield Case("lab.tif", encoded(_lab(), "TIFF"))
    yield Case("deep colour.png", _deep_colour())
    yield Case("moving.gif", _animated("GIF", 17))
    yield Case("moving.webp", _animated("WEBP", 20))
    yield Case("moving.png", _animated("PNG", 23))
    yield Case("stereo.mpo", _animated("MPO", 26))
    yield Case("profile.jpg", encoded(picture(29), "JPEG", icc_profile=_srgb()))
    yield Case("broken profile.jpg", encoded(picture(30), "JPEG", icc_profile=b"\x00" * 200))
    yield Case("broken exif.jpg", encoded(picture(31), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff"))
    yield Case("grüße – 猫 ‮gnp.png", encoded(picture(32), "PNG"))
    yield Case("with [brackets] (1) $(x);.png", encoded(picture(33), "PNG"))
    for orientation in range(1, 9):
        data = encoded(picture(40 + orientation), "JPEG", exif=exif(orientation))
        yield Case(f"turned {orientation}.jpg", data)


def tiny_model(folder: Path, *, width: int = 32) -> Path:
    """A Diffusers layout of a few kilobytes whose headers are real and whose weights are zero."""
    texts: dict[str, Any] = {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "PNDMScheduler"],
        },
        "unet/config.json": {"in_channels": 4, "cross_attention_dim": width},
        "vae/config.json": {"latent_channels": 4},
        "text_encoder/config.json": {"hidden_size": width},
        "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
        "tokenizer/tokenizer.json": {},
    }
    for path, value in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(value))
    for path in (
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ):
        (folder / path).write_bytes(safetensors({"a": [2, 3], "b": [5]}))
    return folder


def safetensors(shapes: dict[str, list[int]]) -> bytes:
    """A safetensors file of F32 zeros."""
    rows: dict[str, Any] = {}
    reached = 0
    for name, shape in shapes.items():
        size = 4
        for edge in shape:
            size *= edge
        rows[name] = {"dtype": "F32", "shape": shape, "data_offsets": [reached, reached + size]}
        reached += size
    header = json.dumps(rows).encode()
    return struct.pack("<Q", len(header)) + header + b"\x00" * reached


def _bad_crc() -> bytes:
    good_ = encoded(picture(), "PNG")
    at = good_.index(b"IDAT") + 40
    return good_[:at] + bytes([good_[at] ^ 0xFF]) + good_[at + 1 :]


def _bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info + b"\x00" * 99


def _huge_jpeg() -> bytes:
    data = encoded(picture(), "JPEG")
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", 65_000, 65_000) + data[at + 9 :]


def _huge_webp() -> bytes:
    edge = (16_383).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x00" * 4 + edge + edge + b"\x00" * 99
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff(width: int, height: int) -> bytes:
    rows = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (279, 9))
    body = struct.pack("<H", len(rows))
    body += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in rows)
    return b"II*\x00\x08\x00\x00\x00" + body + b"\x00" * 4


def _looping_tiff() -> bytes:
    body = struct.pack("<H", 1) + struct.pack("<HHII", 254, 4, 1, 0)
    return b"II*\x00\x08\x00\x00\x00" + body + struct.pack("<I", 8)


def _text_bomb() -> bytes:
    packed = zlib.compress(b"\x00" * 40_000_000, 9)
    text = chunk(b"zTXt", b"k\x00\x00" + packed)
    whole = encoded(picture(), "PNG")
    return whole[:33] + text * 3 + whole[33:]


def _half_clear(seed: int) -> Image.Image:
    image = picture(seed, mode="RGBA")
    image.paste((0, 0, 0, 0), (0, 0, image.width // 2, image.height))
    return image


def _deep_grey(order: str = "<") -> Image.Image:
    values = [min(65535, x * 680 + y) for y in range(80) for x in range(96)]
    mode = "I;16" if order == "<" else "I;16B"
    return Image.frombytes(mode, (96, 80), struct.pack(f"{order}{len(values)}H", *values))


def _deep_colour() -> bytes:
    row = b"".join(struct.pack(">HHH", x * 600, 65535 - x * 600, 30_000) for x in range(96))
    return png(96, 80, data=(b"\x00" + row) * 80, bits=16, color=2)


def _lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    made = ImageCms.profileToProfile(picture(34), *profiles, outputMode="LAB")
    assert made is not None
    return made


def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _animated(kind: str, seed: int) -> bytes:
    frames = [picture(seed + number) for number in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])
