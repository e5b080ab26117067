"""What is asked: pictures as they are sent, words, and the identity under which answers are kept.

A question is data; it must not know servers.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubebooth_api.digests import digest_json
from PIL import Image, ImageOps

from kubebooth_trainer.errors import DataError

MAX_PIXELS = 64_000_000
SMALL_PIXELS = 256 * 256
"""Pictures up to this are sent without loss."""
PATCH = 28
"""Edge of the square of pixels that costs one token in ERNIE 4.5 VL and its likes."""
CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True)
class Sent:
    """A picture as it is sent."""

    data: bytes
    mime: str
    width: int
    height: int

    @property
    def digest(self) -> str:
        """SHA-256 of the sent bytes, 64 hex digits."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def uri(self) -> str:
        """The picture as a data URI; servers never get a path or an address."""
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode()}"

    @property
    def tokens(self) -> int:
        """What it is expected to cost, in tokens."""
        return max(1, round(self.width / PATCH)) * max(1, round(self.height / PATCH))


@dataclass(frozen=True)
class Question:
    """One request: pictures first, so that servers may reuse them, then the words."""

    text: str
    pictures: tuple[Sent, ...] = ()
    system: str = ""
    schema: Mapping[str, Any] | None = None
    """JSON Schema that the answer must fit."""
    choices: tuple[str, ...] = ()
    """The only answers allowed; their probabilities are asked for where the server tells them."""
    max_tokens: int = 512
    """Longest answer in tokens."""
    thinking: bool = False

    def identity(self, model: str) -> str:
        """Digest of all that determines the answer of a model."""
        return digest_json(
            {
                "model": model,
                "system": self.system,
                "text": self.text,
                "pictures": [picture.digest for picture in self.pictures],
                "schema": dict(self.schema) if self.schema is not None else None,
                "choices": list(self.choices),
                "maxTokens": self.max_tokens,
                "thinking": self.thinking,
            }
        )

    @property
    def prompt_tokens(self) -> int:
        """Estimate of what asking costs, in tokens."""
        words = len(self.text) + len(self.system) + (len(str(self.schema)) if self.schema else 0)
        return sum(p.tokens for p in self.pictures) + words // CHARACTERS_PER_TOKEN + 16


def picture(source: Path | bytes, *, name: str, max_edge: int) -> Sent:
    """A picture file, upright, in RGB, at most `max_edge` pixels long.

    Raises `DataError` that names it when it is no sound picture.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise DataError(
                    f"{name}: {opened.width}x{opened.height} px are more than {MAX_PIXELS} pixels;"
                    " make it smaller"
                )
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a sound picture ({error}); leave it out") from error
    return encoded(upright, max_edge=max_edge)


def encoded(image: Image.Image, *, max_edge: int) -> Sent:
    """An RGB picture ready to be sent."""
    if max(image.size) > max_edge:
        scale = max_edge / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if image.width * image.height <= SMALL_PIXELS:
        image.save(buffer, "PNG")
        return Sent(buffer.getvalue(), "image/png", *image.size)
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return Sent(buffer.getvalue(), "image/jpeg", *image.size)
