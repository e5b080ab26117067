"""The five things a model is asked, as questions and as readings of what it said. Pure.

Understanding words and pictures together (`relate`), captions at four levels of detail
(`caption`), answers to questions (`ask`, `decide`), tables by a JSON Schema (`extract`) and a
picture in the light of given text (`compare`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubebooth_api.v1alpha1.dataset import Captions, Concept
from kubebooth_api.v1alpha1.vision import Gate, VisionModel

from kubebooth_trainer.vision.client import Answer
from kubebooth_trainer.vision.questions import Question, Sent

YES, NO = "yes", "no"
VERDICT_TOKENS = 8
PROMPTS: Mapping[str, str] = {
    "Tags": "Describe the picture by 5 to 15 comma-separated tags, the most important first, in"
    " lower case, without sentences.",
    "Short": "Describe the picture in one phrase of at most 12 words.",
    "Medium": "Describe the picture in one or two sentences of at most 40 words: the subject's pose"
    " and clothing, the setting, the light and the framing.",
    "Long": "Describe the picture in three to five sentences: the subject's pose and clothing, the"
    " setting, the light, the colours, the framing and the style.",
}
"""Instruction of each level of detail, unless the session brings its own."""
SYSTEM = (
    "You write captions that an image model is trained on. Tell only what is to be seen. Never"
    " speak of the picture, photo or image itself, never guess names, never add remarks."
)
EXTRACTION = "Read the picture and fill in every field that it shows."
_LABEL = re.compile(r"^\s*(caption|tags|description|answer)\s*:\s*", re.IGNORECASE)
_QUOTES = "\"'“”‘’`"


@dataclass(frozen=True)
class Verdict:
    """The answer to a yes-or-no question."""

    yes: bool
    probability: float | None
    """Of yes, where the server tells probabilities."""
    said: str

    def passes(self, gate: Gate) -> bool:
        """Whether the gate's expectation is met."""
        if self.probability is None:
            return self.yes == gate.expect
        share = self.probability if gate.expect else 1 - self.probability
        return share >= gate.threshold


def caption(
    picture: Sent, *, concept: Concept | None, captions: Captions, model: VisionModel
) -> Question:
    """Ask for a caption, grounded in what the session says of the concept."""
    lines = [model.prompt or PROMPTS[model.detail]]
    if concept is not None:
        lines += _grounding(concept)
    if captions.required_words:
        lines.append(f"Use these words: {', '.join(captions.required_words)}.")
    if captions.forbidden_words:
        lines.append(f"Do not use these words: {', '.join(captions.forbidden_words)}.")
    return Question(
        "\n".join(lines),
        (picture,),
        system=SYSTEM,
        max_tokens=model.max_answer_tokens,
        thinking=model.thinking,
    )


def again(question: Question, complaints: Sequence[str]) -> Question:
    """The same question once more, with what was wrong with the first answer."""
    told = "\n".join(f"- {complaint}" for complaint in complaints)
    return Question(
        f"{question.text}\nYour last caption was not usable:\n{told}\nWrite a better one.",
        question.pictures,
        system=question.system,
        max_tokens=question.max_tokens,
        thinking=question.thinking,
    )


def read_caption(answer: Answer) -> str:
    """The caption in an answer: one line, without label and quotation marks."""
    text = _LABEL.sub("", " ".join(answer.text.split()))
    while len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        text = text[1:-1].strip()
    return text


def ask(picture: Sent, question: str, *, max_tokens: int, thinking: bool = False) -> Question:
    """Ask anything about a picture."""
    return Question(question, (picture,), max_tokens=max_tokens, thinking=thinking)


def decide(picture: Sent, question: str) -> Question:
    """Ask a yes-or-no question about a picture."""
    return Question(
        f"{question}\nAnswer with one word, yes or no.",
        (picture,),
        choices=(YES, NO),
        max_tokens=VERDICT_TOKENS,
    )


def read_verdict(answer: Answer) -> Verdict | None:
    """Yes or no, or None when the answer is neither."""
    word = re.match(r"\W*(yes|no)\b", answer.text, re.IGNORECASE)
    share = answer.probabilities.get(YES) if answer.probabilities else None
    if share is not None:
        return Verdict(share >= 0.5, share, answer.text)
    if word is None:
        return None
    return Verdict(word[1].lower() == YES, None, answer.text)


def extract(
    picture: Sent, schema: Mapping[str, Any], *, prompt: str | None, model: VisionModel
) -> Question:
    """Ask for one row of a table."""
    return Question(
        prompt or EXTRACTION,
        (picture,),
        schema=schema,
        max_tokens=model.max_answer_tokens,
        thinking=model.thinking,
    )


def compare(picture: Sent, text: str) -> Question:
    """Ask whether a caption is true of its picture."""
    return decide(picture, f"Caption: {text}\nIs everything that the caption says to be seen?")


def relate(pictures: Sequence[Sent], text: str, *, model: VisionModel) -> Question:
    """Ask about several pictures and a text together."""
    return Question(
        text, tuple(pictures), max_tokens=model.max_answer_tokens, thinking=model.thinking
    )


def _grounding(concept: Concept) -> list[str]:
    """What is given about the subject, so that captions leave its identity to the token."""
    subject = concept.class_name or "subject"
    lines = [f"The subject is {_article(subject)} {subject}; call it {subject!r} and nothing else."]
    if concept.description:
        lines.append(f"Known of it, not to be repeated: {concept.description}")
    if concept.invariants:
        lines.append(f"Never mention: {', '.join(concept.invariants)}.")
    return lines


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in "aeiou" else "a"
