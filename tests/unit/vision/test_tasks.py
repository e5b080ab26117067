"""What is asked and how answers are read: pure functions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubebooth_api.v1alpha1.dataset import Captions, Concept
from kubebooth_api.v1alpha1.vision import Gate, VisionModel
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.vision import tasks
from kubebooth_trainer.vision.client import Answer
from kubebooth_trainer.vision.naming import with_token
from kubebooth_trainer.vision.questions import encoded
from kubebooth_trainer.vision.spending import Usage
from kubebooth_trainer.vision.structured import NotFitting, check_schema, parse
from PIL import Image

DOG = Concept.parse({"name": "rex", "token": "sks", "className": "dog"})
PICTURE = encoded(Image.new("RGB", (1024, 512)), max_edge=512)
MODEL = VisionModel.parse({"endpoint": "http://x/v1", "model": "m"})


def answer(text: str, probabilities: dict[str, float] | None = None) -> Answer:
    return Answer(text, None, probabilities, Usage(), "m", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog on a beach.", "A sks dog on a beach."),
        ("A dog and a dog", "A sks dog and a dog"),
        ("The SKS dog, sks, sleeps", "The sks dog, sleeps"),
        ("on a beach", "sks dog, on a beach"),
        ("hotdogs on a grill", "sks dog, hotdogs on a grill"),
        ("", "sks dog"),
        ("sks", "sks dog"),
    ],
)
def test_the_token_stands_once_before_the_class_name(text: str, expected: str) -> None:
    assert with_token(text, DOG) == expected


def test_the_token_may_go_to_the_end() -> None:
    assert with_token("on a beach.", DOG, at_end=True) == "on a beach, sks dog"


@given(st.text(alphabet="abcdogsk ,.SKS", max_size=60))
def test_the_token_is_there_exactly_once_whatever_was_written(text: str) -> None:
    found = re.findall(r"(?<!\w)sks(?!\w)", with_token(text, DOG), re.IGNORECASE)
    assert len(found) == 1


def test_pictures_are_scaled_down_to_what_the_trainer_sees() -> None:
    assert (PICTURE.width, PICTURE.height) == (512, 256)
    assert PICTURE.tokens == 18 * 9


def test_captions_are_grounded_in_the_concept() -> None:
    concept = Concept.parse(
        {
            "name": "ann",
            "token": "ohwx",
            "className": "woman",
            "description": "an actress",
            "invariants": ["red hair"],
        }
    )
    captions = Captions.parse({"requiredWords": ["portrait"], "forbiddenWords": ["blurry"]})
    text = tasks.caption(PICTURE, concept=concept, captions=captions, model=MODEL).text
    for part in ("a woman", "an actress", "Never mention: red hair", "portrait", "blurry"):
        assert part in text
    assert "ohwx" not in text


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ('Caption: "A cat."', "A cat."),
        ("“a\n  cat”", "a cat"),
        ("plain", "plain"),
        ('"', '"'),
    ],
)
def test_labels_and_quotation_marks_are_no_part_of_a_caption(said: str, read: str) -> None:
    assert tasks.read_caption(answer(said)) == read


@pytest.mark.parametrize(
    ("said", "probabilities", "yes", "share"),
    [
        ("Yes.", None, True, None),
        ("**No**, it is not", None, False, None),
        ("no", {"yes": 0.7, "no": 0.3}, True, 0.7),
    ],
)
def test_a_verdict_follows_the_probabilities_where_they_are_told(
    said: str, probabilities: dict[str, float] | None, yes: bool, share: float | None
) -> None:
    verdict = tasks.read_verdict(answer(said, probabilities))
    assert verdict is not None
    assert (verdict.yes, verdict.probability) == (yes, share)


def test_neither_yes_nor_no_is_no_verdict() -> None:
    assert tasks.read_verdict(answer("Nobody knows")) is None


@pytest.mark.parametrize(
    ("expect", "threshold", "share", "passes"),
    [(True, 0.8, 0.75, False), (True, 0.7, 0.75, True), (False, 0.8, 0.1, True)],
)
def test_a_gate_holds_probabilities_to_its_threshold(
    expect: bool, threshold: float, share: float, passes: bool
) -> None:
    gate = Gate.parse({"name": "g", "question": "?", "expect": expect, "threshold": threshold})
    assert tasks.Verdict(share >= 0.5, share, "yes").passes(gate) is passes


@pytest.mark.parametrize(
    "text", ['{"a": 1}', 'Here:\n```json\n{"a": 1}\n```\nBye', 'It is {"a": 1}.']
)
def test_json_is_found_in_what_is_said(text: str) -> None:
    assert parse(text, {"type": "object"}) == {"a": 1}


@pytest.mark.parametrize("text", ["", "no", '{"a": NaN}', "{" * 50_000, '{"a": 1'])
def test_what_is_no_json_does_not_fit(text: str) -> None:
    with pytest.raises(NotFitting):
        parse(text, {"type": "object"})


@pytest.mark.parametrize(
    "schema", [{"type": "nothing"}, {"$ref": "file:///etc/passwd"}, {"items": {"$ref": "x.json"}}]
)
def test_a_schema_that_is_none_or_reaches_outside_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="rows"):
        check_schema(schema, where="rows")
