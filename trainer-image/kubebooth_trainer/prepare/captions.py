"""Which words each picture is trained with: caption files and the effective prompt.

The rule, in full:

1. A caption is the `.txt` file of the same stem (`a.jpg` → `a.txt`, else `a.jpg.txt`), its blanks
   and line breaks made single blanks. `captions.mode: None` ignores all of them.
2. `captions.prefix` and `captions.suffix` are put around a caption, with `{token}` and `{class}`
   filled in.
3. A caption that still lacks the token as a word gets it as `captions.token` says: `AsIs` leaves it
   alone, `Prefix` makes it `<token> <className>, <caption>`, `Suffix` the other way round.
4. A picture without caption takes the notebook's rule with `concepts[].tokenFromFilename`, else
   `concepts[].instancePrompt`, else `<token> <className>`. A prompt is never empty.

It must not know files or stores.
"""

from __future__ import annotations

import re

from kubebooth_api.v1alpha1.dataset import Captions, Concept

MAX_CHARACTERS = 2048
"""Characters a caption may have."""
MAX_BYTES = 4 * MAX_CHARACTERS + 3
"""Bytes a caption file may have: the longest UTF-8 of that many characters, and a BOM."""
TEXT_ENCODER_WORDS = 75
"""CLIP reads 77 tokens, two of them its own; a word or mark takes at least one."""

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_WORD = re.compile(r"\w+|[^\w\s]")


class BadCaption(Exception):
    """The caption file cannot be used; the message says why and the cure."""


def parse(data: bytes) -> str:
    """The caption in a file's bytes, possibly empty. Raises `BadCaption`."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadCaption("is UTF-16 text; save the caption as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadCaption(
            f"is not UTF-8 text (byte {error.start}); save the caption as UTF-8"
        ) from error
    if _CONTROL.search(text):
        raise BadCaption("holds control characters; write the caption as plain text")
    caption = " ".join(text.split())
    if len(caption) > MAX_CHARACTERS:
        raise BadCaption(f"has {len(caption)} characters; shorten the caption to {MAX_CHARACTERS}")
    return caption


def prompt_for(caption: str, *, concept: Concept, captions: Captions, file_name: str = "") -> str:
    """The effective prompt of a picture; `caption` is empty when it has none. Never empty."""
    subject = " ".join(f"{concept.token} {concept.class_name or ''}".split())
    if not caption:
        named = from_file_name(file_name) if concept.token_from_filename else ""
        own = " ".join(_fill(concept.instance_prompt or "", concept).split())
        return named or own or subject
    text = _around(_fill(captions.prefix, concept), caption, _fill(captions.suffix, concept))
    if captions.token == "AsIs" or has_token(text, concept.token):
        return text
    return f"{subject}, {text}" if captions.token == "Prefix" else f"{text}, {subject}"


def from_file_name(name: str) -> str:
    """The notebook's rule, kept for its users: `sks dog (3).jpg` → `sksdog`.

    Blanks became `-` on upload; then digits, brackets and `-` were dropped and `_` became a blank.
    """
    stem = name.rsplit("/", 1)[-1].rpartition(".")[0] or name.rsplit("/", 1)[-1]
    bare = "".join(char for char in stem if not char.isdigit() and char not in "()- ")
    return " ".join(bare.replace("_", " ").replace("conceptimagedb", "").split())


def has_token(text: str, token: str) -> bool:
    """Whether the token stands in the text as a word, in any case."""
    pattern = rf"(?<!\w){re.escape(token)}(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def words(text: str) -> int:
    """Words and marks of a text: a lower bound of its tokens."""
    return len(_WORD.findall(text))


def _fill(text: str, concept: Concept) -> str:
    # Plain replacement: a format string of the user's could reach into objects.
    return text.replace("{token}", concept.token).replace("{class}", concept.class_name or "")


def _around(prefix: str, caption: str, suffix: str) -> str:
    glue = "" if suffix.lstrip().startswith(tuple(",.;:!?")) else " "
    return " ".join(f"{prefix} {caption}{glue}{suffix.lstrip()}".split())
