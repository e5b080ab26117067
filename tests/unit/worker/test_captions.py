import pytest
from kubebooth_api.v1alpha1.dataset import Captions, Concept
from kubebooth_trainer.prepare.captions import (
    BadCaption,
    from_file_name,
    has_token,
    parse,
    prompt_for,
)
from kubebooth_trainer.prepare.lints import findings
from kubebooth_trainer.prepare.sources import is_litter

CAT = Concept(name="cat", token="sks", class_name="cat")


@pytest.mark.parametrize(
    ("caption", "captions", "concept", "prompt"),
    [
        ("", Captions(), CAT, "sks cat"),
        ("", Captions(), Concept(name="x", token="r2-d2"), "r2-d2"),
        ("", Captions(prefix="photo of"), CAT, "sks cat"),
        ("a sks cat on a sofa", Captions(), CAT, "a sks cat on a sofa"),
        ("A SKS cat", Captions(), CAT, "A SKS cat"),
        ("asleep", Captions(), CAT, "asleep"),
        ("asleep", Captions(token="Prefix"), CAT, "sks cat, asleep"),
        ("asleep", Captions(token="Suffix"), CAT, "asleep, sks cat"),
        ("masks on a wall", Captions(token="Prefix"), CAT, "sks cat, masks on a wall"),
        ("a sks", Captions(token="Prefix"), CAT, "a sks"),
        ("asleep", Captions(prefix="photo of {token} {class},"), CAT, "photo of sks cat, asleep"),
        ("sks", Captions(suffix=", 35mm"), CAT, "sks, 35mm"),
        ("sks", Captions(suffix="by night"), CAT, "sks by night"),
        ("{token} {0} {x.__class__}", Captions(), CAT, "{token} {0} {x.__class__}"),
        (
            "",
            Captions(),
            Concept(name="x", token="sks", instance_prompt="{token} alone"),
            "sks alone",
        ),
        ("", Captions(), Concept(name="x", token="sks", instance_prompt="art"), "art"),
        ("", Captions(), Concept(name="x", token="sks", instance_prompt="  "), "sks"),
        ("", Captions(), Concept(name="x", token="c++ 2", class_name="a"), "c++ 2 a"),
    ],
)
def test_the_effective_prompt_follows_the_written_rule(
    caption: str, captions: Captions, concept: Concept, prompt: str
) -> None:
    assert prompt_for(caption, concept=concept, captions=captions) == prompt


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("phtmejhn (1).jpg", "phtmejhn"),
        ("githubuser01946 (3).png", "githubuser"),
        ("r2d2_(12).png", "rd"),
        ("6.jpg", ""),
        ("sks-dog-07.jpg", "sksdog"),
        ("WhatsApp Image 2023-01-01 at 10.00.00.jpg", "WhatsAppImageat.."),
        ("folder/a_b.png", "a b"),
        ("conceptimagedb3.jpg", ""),
    ],
)
def test_the_notebooks_rule_is_kept_for_its_users(name: str, prompt: str) -> None:
    assert from_file_name(name) == prompt
    concept = CAT.model_copy(update={"token_from_filename": True})
    effective = prompt_for("", concept=concept, captions=Captions(), file_name=name)
    assert effective == (prompt or "sks cat")


@pytest.mark.parametrize(
    ("caption", "captions", "words"),
    [
        ("a sks cat", Captions(), []),
        ("asleep", Captions(), ["without the token 'sks'; add it or set captions.token: Prefix"]),
        ("", Captions(), []),
        ("sks " + "word, " * 40, Captions(ignored_lints=("Repetition",)), ["81 words and marks"]),
        ("sks on a sofa", Captions(max_tokens=3), ["more than the 3 that are read"]),
        ("sks", Captions(required_words=("photo",)), ["without 'photo'"]),
        ("sks blurry", Captions(forbidden_words=("blurry",)), ["with 'blurry'"]),
        ("sks with a red collar", Captions(), ["tells 'red collar'"]),
        ("This image shows sks", Captions(), ["about the picture as such"]),
        ("sks: I'm sorry, I cannot", Captions(), ["a model declines"]),
        ("sks very very very very big", Captions(), ["repeats itself"]),
        ("sks, " + "a cat and " * 4, Captions(), ["repeats itself"]),
        ("asleep", Captions(ignored_lints=("MissingToken",)), []),
    ],
)
def test_what_is_odd_about_a_prompt_is_told(
    caption: str, captions: Captions, words: list[str]
) -> None:
    concept = CAT.model_copy(update={"invariants": ("red collar",)})
    prompt = prompt_for(caption, concept=concept, captions=captions)
    told = list(findings(prompt, caption=caption, twin=None, concept=concept, captions=captions))
    assert len(told) == len(words)
    assert all(word in sentence for word, sentence in zip(words, told, strict=True))


def test_a_token_of_marks_is_found_as_a_word() -> None:
    assert has_token("the c++ book", "c++")
    assert not has_token("xc++", "c++")


def test_blanks_and_line_breaks_become_single_blanks() -> None:
    assert parse(b"\xef\xbb\xbf a\r\n\tb\n") == "a b"
    assert parse(b"") == ""
    assert parse(("ä" * 2048).encode()) == "ä" * 2048


@pytest.mark.parametrize("data", [b"\xfe\xff\x00s", b"\xc3", b"a\x1bb", b"y" * 2049])
def test_what_is_no_plain_text_is_refused(data: bytes) -> None:
    with pytest.raises(BadCaption):
        parse(data)


@pytest.mark.parametrize(
    ("name", "litter"),
    [
        (".DS_Store", True),
        ("a/b/THUMBS.DB", True),
        ("__MACOSX/x.png", True),
        ("._x.png", True),
        ("x.png~", True),
        ("x.png", False),
        ("thumbs.db.png", False),
        ("git/x.png", False),
    ],
)
def test_litter_is_told_by_name(name: str, litter: bool) -> None:
    assert is_litter(name) is litter
