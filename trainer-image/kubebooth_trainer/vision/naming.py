"""The concept's token in a caption: there exactly once, whatever the model wrote. Pure."""

from __future__ import annotations

import re

from kubebooth_api.v1alpha1.dataset import Concept


def with_token(text: str, concept: Concept, *, at_end: bool = False) -> str:
    """A caption that has the token exactly once, before the class name where that stands.

    The first mention of the class name gets the token; without one the subject is put in front, or
    at the end. Further tokens are taken out.
    """
    token = re.escape(concept.token)
    bare = " ".join(re.sub(rf"(?<!\w){token}(?!\w)", " ", text, flags=re.IGNORECASE).split())
    bare = re.sub(r"\s+([,.;:!?])", r"\1", bare)
    bare = re.sub(r",(?:\s*,)+", ",", bare).strip(" ,;")
    name = concept.class_name
    if name:
        first = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", bare, re.IGNORECASE)
        if first is not None:
            return f"{bare[: first.start()]}{concept.token} {bare[first.start() :]}"
    subject = " ".join(word for word in (concept.token, name) if word)
    if not bare:
        return subject
    return f"{bare.rstrip('.')}, {subject}" if at_end else f"{subject}, {bare}"
