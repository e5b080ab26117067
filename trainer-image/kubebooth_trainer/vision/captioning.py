"""Captions for many pictures: asked, read, given the token, judged, and asked once more if bad.

It must not know where pictures come from or where captions go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kubebooth_api.digests import digest_json
from kubebooth_api.v1alpha1.dataset import Captions, Concept
from kubebooth_api.v1alpha1.vision import VisionModel

from kubebooth_trainer.vision import tasks
from kubebooth_trainer.vision.client import Answer, Client, NoAnswer
from kubebooth_trainer.vision.naming import with_token
from kubebooth_trainer.vision.questions import Question, Sent
from kubebooth_trainer.vision.spending import Usage

Judge = Callable[[str, str], list[str]]
"""Name of a picture and a caption → what is wrong with it, one sentence each."""


@dataclass(frozen=True)
class Provenance:
    """Where a caption comes from."""

    model: str
    """Model as the server named it."""
    prompt: str
    """Digest of the instruction."""
    usage: Usage
    """What it cost, the second try among it."""


@dataclass(frozen=True)
class Captioned:
    """A caption, what is still wrong with it, and where it comes from."""

    text: str
    complaints: tuple[str, ...]
    provenance: Provenance


def write_captions(
    pictures: Mapping[str, Sent],
    concepts: Mapping[str, Concept | None],
    *,
    client: Client,
    model: VisionModel,
    captions: Captions,
    judge: Judge,
    on_done: Callable[[str], None],
) -> dict[str, Captioned | NoAnswer]:
    """A caption for each picture, by name. `concepts` has the concept of each.

    A caption with complaints is asked for once more, and the better one is taken. Raises as
    `Client.ask_all` does; what was answered before is kept.
    """
    questions = {
        name: tasks.caption(sent, concept=concepts[name], captions=captions, model=model)
        for name, sent in pictures.items()
    }
    first = client.ask_all(questions, on_done=lambda _name: None)
    found = {
        name: _judged(answer, questions[name], concepts[name], captions, name, judge)
        for name, answer in first.items()
    }
    bad = {
        name: tasks.again(questions[name], one.complaints)
        for name, one in found.items()
        if isinstance(one, Captioned) and one.complaints
    }
    for name in found:
        if name not in bad:
            on_done(name)
    for name, answer in client.ask_all(bad, on_done=on_done).items():
        second = _judged(answer, bad[name], concepts[name], captions, name, judge)
        found[name] = _better(found[name], second)
    return found


def _judged(
    answer: Answer | NoAnswer,
    question: Question,
    concept: Concept | None,
    captions: Captions,
    name: str,
    judge: Judge,
) -> Captioned | NoAnswer:
    if isinstance(answer, NoAnswer):
        return answer
    text = tasks.read_caption(answer)
    if concept is not None:
        text = with_token(text, concept, at_end=captions.token == "Suffix")
    asked = digest_json({"system": question.system, "text": question.text})
    return Captioned(text, tuple(judge(name, text)), Provenance(answer.model, asked, answer.usage))


def _better(one: Captioned | NoAnswer, other: Captioned | NoAnswer) -> Captioned | NoAnswer:
    if isinstance(other, NoAnswer) or isinstance(one, NoAnswer):
        return one
    kept = other if len(other.complaints) < len(one.complaints) else one
    paid = one.provenance.usage + other.provenance.usage
    return Captioned(
        kept.text,
        kept.complaints,
        Provenance(kept.provenance.model, kept.provenance.prompt, paid),
    )
