"""The commands on a folder of pictures: captions written, questions answered, tables read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubebooth_trainer.__main__ import main
from PIL import Image

from tests.integration.vision.server import Server, colour_of

COLOURS = {"a": (200, 20, 20), "b": (20, 200, 20), "c": (20, 20, 200)}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(heeds=frozenset(), say=lambda asked: f"A {colour_of(asked)} dog runs.") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (300, 200), colour).save(place / f"{name}.png")
    (place / "notes.md").write_text("not a picture")
    return place


Told = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """Run a command on a folder; its JSON and what it said besides."""
    monkeypatch.setenv("OPENAI_API_KEY", "of mine")

    def run(
        server: Server, verb: str, folder: Path, *options: str, code: int = 0
    ) -> tuple[dict[str, Any], str]:
        common = ["--endpoint", server.url, "--model", "tiny", "--json"]
        found = main([verb, str(folder), *options, *common])
        printed = capsys.readouterr()
        assert found == code, printed.err
        return (json.loads(printed.out) if printed.out else {}), printed.err

    return run


def test_captions_are_written_with_the_token_once_and_their_provenance(
    told: Told, server: Server, folder: Path
) -> None:
    value, _ = told(server, "caption", folder, "--token", "sks", "--class-name", "dog")
    assert (folder / "a.txt").read_text() == "A red sks dog runs.\n"
    assert value["captions"]["b.png"]["caption"] == "A green sks dog runs."
    provenance = json.loads((folder / "a.caption.json").read_text())
    assert provenance["model"] == "served-by-test"
    assert provenance["usage"]["prompt_tokens"] == 100
    assert provenance["prompt"].startswith("sha256:")


def test_a_caption_of_a_person_is_never_overwritten(
    told: Told, server: Server, folder: Path
) -> None:
    (folder / "a.txt").write_text("my own words")
    told(server, "caption", folder, "--token", "sks")
    (folder / "b.txt").write_text("mended by hand")
    value, _ = told(server, "caption", folder, "--token", "zwx", "--again")
    assert (folder / "a.txt").read_text() == "my own words"
    assert (folder / "b.txt").read_text() == "mended by hand"
    assert (folder / "c.txt").read_text() == "zwx, A blue dog runs.\n"
    assert value["left alone"] == ["a.png", "b.png"]


def test_asking_again_costs_nothing(told: Told, server: Server, folder: Path) -> None:
    told(server, "ask", folder, "Which colour?")
    server.seen.clear()
    value, _ = told(server, "ask", folder, "Which colour?")
    assert value["answers"]["c.png"]["answer"] == "A blue dog runs."
    assert [asked for asked in server.seen if asked["max_tokens"] != 16] == []


def test_an_estimate_asks_nothing(told: Told, server: Server, folder: Path) -> None:
    value, _ = told(server, "caption", folder, "--estimate")
    assert value["estimate"]["calls"] == 3
    assert server.seen == []


def test_a_question_is_asked_in_the_light_of_each_caption(
    told: Told, server: Server, folder: Path
) -> None:
    for name in COLOURS:
        (folder / f"{name}.txt").write_text(f"the words of {name}")
    told(server, "ask", folder, "Is that true?", "--captions")
    asked = [r["messages"][0]["content"][-1]["text"] for r in server.seen if r["max_tokens"] > 16]
    assert sorted(asked) == [f"Given text: the words of {n}\nIs that true?" for n in "abc"]


def test_all_pictures_are_asked_about_together(told: Told, server: Server, folder: Path) -> None:
    told(server, "ask", folder, "Is it the same dog?", "--together")
    (asked,) = [r for r in server.seen if r["max_tokens"] > 16]
    kinds = [part["type"] for part in asked["messages"][0]["content"]]
    assert kinds == ["image_url"] * 3 + ["text"]


def test_yes_and_no_come_with_probabilities(told: Told, folder: Path) -> None:
    odds = {"yes": -0.5, "no": -1.5}
    with Server(say=lambda _asked: "Yes.", probabilities=odds) as server:
        value, _ = told(server, "ask", folder, "A dog?", "--yes-no")
    row = value["answers"]["a.png"]
    assert row["yes"] is True
    assert row["probability"] == pytest.approx(0.731, abs=0.01)


def test_a_table_is_read_by_its_schema(told: Told, folder: Path, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}}
    (tmp_path / "schema.json").write_text(json.dumps({**schema, "required": ["colour"]}))

    def say(asked: Any) -> str:
        return f'{{"colour": "{colour_of(asked)}"}}'

    with Server(say=say, heeds=frozenset()) as server:
        value, _ = told(server, "extract", folder, str(tmp_path / "schema.json"))
    assert value["rows"]["b.png"]["row"] == {"colour": "green"}


def test_a_schema_that_reaches_outside_is_refused(
    told: Told, server: Server, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "schema.json").write_text('{"$ref": "http://169.254.169.254/schema"}')
    _, error = told(server, "extract", folder, str(tmp_path / "schema.json"), code=64)
    assert "leaves the schema" in error
    assert server.seen == []


def test_a_picture_without_answer_is_told_and_the_code_says_so(
    told: Told, server: Server, folder: Path
) -> None:
    server.faults = ["", "400"]
    value, _ = told(server, "ask", folder, "Which?", "--concurrency", "1", code=65)
    errors = [name for name, row in value["answers"].items() if "error" in row]
    assert len(errors) == 1
    assert len(value["answers"]) == 3


def test_a_broken_picture_is_told_and_the_others_are_asked(
    told: Told, server: Server, folder: Path
) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    value, error = told(server, "ask", folder, "Which?")
    assert "left out: broken.jpg" in error
    assert len(value["answers"]) == 3
