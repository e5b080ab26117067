import pytest
from kubebooth_api.v1alpha1.dataset import Captions, Concept
from kubebooth_trainer.prepare.captions import BadCaption, has_token, parse, prompt_for
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
        ("asleep", Captions(), CAT, "sks cat, asleep"),
        ("masks on a wall", Captions(), CAT, "sks cat, masks on a wall"),
        ("asleep", Captions(prefix="photo of {token} {class},"), CAT, "photo of sks cat, asleep"),
        ("sks", Captions(suffix=", 35mm"), CAT, "sks, 35mm"),
        ("sks", Captions(suffix="by night"), CAT, "sks by night"),
        ("{token} {0} {x.__class__}", Captions(), CAT, "sks cat, {token} {0} {x.__class__}"),
        (
            "",
            Captions(),
            Concept(name="x", token="sks", instance_prompt="{token} alone"),
            "sks alone",
        ),
        ("", Captions(), Concept(name="x", token="sks", instance_prompt="art"), "sks, art"),
        ("", Captions(), Concept(name="x", token="sks", instance_prompt="  "), "sks"),
        ("", Captions(), Concept(name="x", token="c++ 2", class_name="a"), "c++ 2 a"),
    ],
)
def test_the_effective_prompt_follows_the_written_rule(
    caption: str, captions: Captions, concept: Concept, prompt: str
) -> None:
    assert prompt_for(caption, concept=concept, captions=captions) == prompt


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
