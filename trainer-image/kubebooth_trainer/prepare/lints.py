"""What is odd about a picture's prompt; pure, and only told: policies decide what it does."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kubebooth_api.v1alpha1.dataset import Captions, Concept

from kubebooth_trainer.prepare.captions import TEXT_ENCODER_WORDS, has_token, words

_META = re.compile(
    r"^(in )?(this|the) (image|picture|photo|photograph)\b.{0,20}\b(is|shows|depicts|features)?",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i cannot|i can'?t|i am unable|i'?m unable|as an ai)\b", re.IGNORECASE
)
_MOST_REPEATS = 4


def findings(
    prompt: str, *, caption: str, twin: str | None, concept: Concept, captions: Captions
) -> Iterator[str]:
    """One sentence a finding. `twin` names a picture of the concept with the same caption."""
    for lint, sentence in _all(prompt, caption, twin, concept, captions):
        if lint not in captions.ignored_lints:
            yield sentence


def _all(
    prompt: str, caption: str, twin: str | None, concept: Concept, captions: Captions
) -> Iterator[tuple[str, str]]:
    if not has_token(prompt, concept.token):
        cure = "set captions.token: Prefix" if caption else "mend concepts[].instancePrompt"
        yield "MissingToken", f"has a prompt without the token {concept.token!r}; add it or {cure}"
    limit = captions.max_tokens or TEXT_ENCODER_WORDS
    if words(prompt) > limit:
        yield (
            "TooLong",
            f"has a prompt of {words(prompt)} words and marks, more than the {limit} that are read;"
            " put what matters first, or shorten it",
        )
    if not caption:
        return
    for word in captions.required_words:
        if not has_token(caption, word):
            yield "", f"has a caption without {word!r}, which captions.requiredWords asks for"
    for word in captions.forbidden_words:
        if has_token(caption, word):
            yield "", f"has a caption with {word!r}, which captions.forbiddenWords excludes"
    for word in concept.invariants:
        if has_token(caption, word):
            yield "Identity", f"has a caption that tells {word!r}, which belongs to the token"
    if _META.search(caption):
        yield "MetaPhrase", "has a caption about the picture as such; tell what is to be seen"
    if _REFUSAL.search(caption):
        yield "Refusal", "has a caption in which a model declines; write one"
    if _repeats(caption):
        yield "Repetition", "has a caption that repeats itself; shorten it"
    if twin is not None:
        yield "Duplicate", f"has the same caption as {twin}; tell them apart"


def _repeats(caption: str) -> bool:
    found = re.findall(r"\w+", caption.lower())
    for length in (1, 2, 3):
        for start in range(len(found) - length * _MOST_REPEATS + 1):
            part = found[start : start + length]
            if found[start : start + length * _MOST_REPEATS] == part * _MOST_REPEATS:
                return True
    return False
