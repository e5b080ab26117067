"""No answer is lost, none is invented, and nothing is paid twice, whatever the server does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from kubebooth_api.v1alpha1.vision import VisionModel
from kubebooth_store import Store, open_store
from kubebooth_trainer.errors import ConfigurationError, Preempted
from kubebooth_trainer.vision import client as module
from kubebooth_trainer.vision.answers import Answers
from kubebooth_trainer.vision.client import Answer, Client, NoAnswer, VisionUnavailable
from kubebooth_trainer.vision.questions import Question, Sent, encoded
from kubebooth_trainer.vision.spending import BudgetSpent, Usage
from PIL import Image

from tests.integration.vision.server import Server, colour_of

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}, "count": {"type": "integer"}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store((tmp_path / "store").as_uri(), timeout_s=5)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.05)


def painted(colour: str, shade: int = 0) -> Sent:
    red, green, blue = COLOURS[colour]
    return encoded(Image.new("RGB", (56, 56), (red, green, blue + shade)), max_edge=512)


def questions(count: int = 6) -> dict[str, Question]:
    names = list(COLOURS)
    return {
        f"{number}.png": Question("Describe.", pictures=(painted(names[number % 3], number),))
        for number in range(count)
    }


def opened(server: Server, store: Store, stop: Event | None = None, **model: Any) -> Client:
    asked = {"model": "tiny", "dialect": "OpenAI", "timeoutSeconds": 1, "maxConcurrency": 2}
    return Client(
        VisionModel.parse({**asked, **model}),
        endpoint=server.url,
        key="secret",
        answers=Answers(store, "sessions/default/demo/answers"),
        stop=stop or Event(),
    )


def answers(
    server: Server, store: Store, asked: dict[str, Question] | None = None, **model: Any
) -> dict[str, Answer | NoAnswer]:
    with opened(server, store, **model) as client:
        return client.ask_all(asked or questions(), on_done=lambda _name: None)


def texts(found: dict[str, Answer | NoAnswer]) -> dict[str, str]:
    assert all(isinstance(answer, Answer) for answer in found.values())
    return {name: answer.text for name, answer in found.items() if isinstance(answer, Answer)}


EXPECTED = {f"{n}.png": f"a {('red', 'green', 'blue')[n % 3]} picture" for n in range(6)}


def test_each_picture_gets_its_own_answer_in_order(server: Server, store: Store) -> None:
    found = texts(answers(server, store))
    assert found == EXPECTED
    assert list(found) == list(EXPECTED)
    assert server.most_at_once <= 2


def test_a_second_run_asks_and_pays_nothing(server: Server, store: Store) -> None:
    first = answers(server, store)
    server.seen.clear()
    with opened(server, store) as client:
        assert client.estimate(questions()) == Usage()
        again = client.ask_all(questions(), on_done=lambda _name: None)
        assert client.spending.spent == Usage(6, 600, 60)
    assert texts(again) == texts(first)
    assert all(isinstance(one, Answer) and one.kept for one in again.values())
    assert server.seen == []


def test_equal_pictures_are_asked_once(server: Server, store: Store) -> None:
    same = {f"copy {n}": Question("Describe.", pictures=(painted("red"),)) for n in range(5)}
    assert set(texts(answers(server, store, same)).values()) == {"a red picture"}
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "fault",
    ["500", "503", "429", "408", "empty", "cut", "no choice", "half json", "drop", "hang", "slow"],
)
def test_a_failed_try_is_asked_again_and_becomes_no_caption(
    server: Server, store: Store, fault: str
) -> None:
    server.faults = [fault, "", fault]
    assert texts(answers(server, store, questions(3))) == {
        name: text for name, text in EXPECTED.items() if name < "3"
    }


def test_what_failed_tries_cost_is_counted(server: Server, store: Store) -> None:
    server.faults = ["empty", "cut"]
    with opened(server, store, maxConcurrency=1) as client:
        client.ask_all(questions(2), on_done=lambda _name: None)
        assert client.spending.spent == Usage(4, 400, 40)
    assert Answers(store, "sessions/default/demo/answers").spent() == Usage(4, 400, 40)


def test_thoughts_are_no_part_of_an_answer(server: Server, store: Store) -> None:
    server.faults = ["think"]
    assert texts(answers(server, store, questions(1))) == {"0.png": "a red picture"}


def test_an_answer_without_usage_is_an_answer(server: Server, store: Store) -> None:
    server.faults = ["no usage"]
    assert texts(answers(server, store, questions(1))) == {"0.png": "a red picture"}


@pytest.mark.parametrize("fault", ["400", "413", "422"])
def test_a_picture_that_the_server_declines_is_named_and_the_others_go_on(
    server: Server, store: Store, fault: str
) -> None:
    server.faults = [fault]
    found = answers(server, store, questions(3), maxConcurrency=1)
    assert isinstance(found["0.png"], NoAnswer)
    assert f"HTTP {fault}" in found["0.png"].why
    assert len(server.seen) == 3
    rest = {name: answer for name, answer in found.items() if name != "0.png"}
    assert texts(rest) == {"1.png": "a green picture", "2.png": "a blue picture"}


def test_a_question_that_never_works_ends_after_its_tries(server: Server, store: Store) -> None:
    server.faults = ["empty"] * 3
    found = answers(server, store, questions(1), maxTries=3)["0.png"]
    assert isinstance(found, NoAnswer)
    assert "empty" in found.why
    assert len(server.seen) == 3


def test_a_server_that_fails_for_everybody_is_given_up_and_answers_are_kept(
    server: Server, store: Store
) -> None:
    server.faults = ["", ""] + ["503"] * 200
    with pytest.raises(VisionUnavailable, match="HTTP 503") as caught:
        answers(server, store, questions(45), maxTries=20)
    assert caught.value.reason == "VisionUnavailable"
    asked_for = len(server.seen)
    assert asked_for < 45
    server.faults = []
    server.seen.clear()
    assert len(texts(answers(server, store, questions(45)))) == 45
    assert len(server.seen) == 43


def test_a_wrong_key_is_told_with_the_field(server: Server, store: Store) -> None:
    server.key = "another"
    with pytest.raises(ConfigurationError, match=r"apiKeySecretRef") as caught:
        answers(server, store)
    assert caught.value.reason == "VisionDenied"


def test_a_missing_model_is_told_with_the_field(server: Server, store: Store) -> None:
    server.faults = ["404"] * 9
    with pytest.raises(ConfigurationError, match="check endpoint"):
        answers(server, store)


def test_a_stopped_worker_stops_asking(server: Server, store: Store) -> None:
    stop = Event()
    with opened(server, store, stop, maxConcurrency=1) as client, pytest.raises(Preempted):
        client.ask_all(questions(), on_done=lambda _name: stop.set())
    assert len(server.seen) < 6
    already = server.answered
    texts(answers(server, store))
    assert server.answered == 6
    assert already >= 1


def test_thinking_is_off_where_a_server_knows_the_switch(server: Server, store: Store) -> None:
    answers(server, store, questions(1), dialect="Vllm")
    assert server.seen[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "extra_body" not in server.seen[0]


def test_a_picture_comes_before_the_words_and_is_sent_as_data(server: Server, store: Store) -> None:
    answers(server, store, questions(1))
    first, second = server.seen[0]["messages"][0]["content"]
    assert first["image_url"]["url"].startswith("data:image/png;base64,")
    assert second == {"type": "text", "text": "Describe."}


def test_a_server_is_probed_once_and_its_refusals_are_learned(store: Store) -> None:
    with Server(refuses=frozenset({"chat_template_kwargs"}), heeds=frozenset()) as plain:
        found = texts(answers(plain, store, questions(2), dialect="Auto"))
        assert found == {"0.png": "a red picture", "1.png": "a green picture"}
        probes = [asked for asked in plain.seen if asked["max_tokens"] == 16]
        assert len(probes) == 2
        assert all("chat_template_kwargs" not in asked for asked in plain.seen[2:])


def test_an_ignored_format_is_noticed_and_the_schema_told_in_words(store: Store) -> None:
    def say(asked: Any) -> str:
        return f'Sure!\n```json\n{{"colour": "{colour_of(asked)}"}}\n```'

    with Server(say=say, heeds=frozenset()) as plain:
        asked = {"a": Question("Which colour?", pictures=(painted("blue"),), schema=SCHEMA)}
        found = answers(plain, store, asked, dialect="Auto")["a"]
        assert isinstance(found, Answer)
        assert found.value == {"colour": "blue"}
        assert "response_format" not in plain.seen[-1]
        assert "JSON Schema" in plain.seen[-1]["messages"][0]["content"][-1]["text"]


def test_a_heeded_format_is_used(server: Server, store: Store) -> None:
    server.say = lambda asked: f'{{"colour": "{colour_of(asked)}"}}'
    asked = {"a": Question("Which colour?", pictures=(painted("green"),), schema=SCHEMA)}
    found = answers(server, store, asked, dialect="Auto")["a"]
    assert isinstance(found, Answer)
    assert found.value == {"colour": "green"}
    assert server.seen[-1]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_an_answer_that_does_not_fit_gets_one_repair_turn(store: Store) -> None:
    replies = ['{"colour": "mauve"}', '{"colour": "red"}']
    with Server(say=lambda _asked: replies.pop(0)) as server:
        asked = {"a": Question("Which colour?", pictures=(painted("red"),), schema=SCHEMA)}
        found = answers(server, store, asked)["a"]
        assert isinstance(found, Answer)
        assert found.value == {"colour": "red"}
        assert found.usage == Usage(2, 200, 20)
        told = server.seen[1]["messages"]
        assert told[-2] == {"role": "assistant", "content": '{"colour": "mauve"}'}
        assert "colour" in told[-1]["content"]


def test_an_answer_that_never_fits_is_no_answer(store: Store) -> None:
    with Server(say=lambda _asked: "no idea") as server:
        server.heeds = frozenset()
        asked = {"a": Question("Which colour?", pictures=(painted("red"),), schema=SCHEMA)}
        found = answers(server, store, asked, maxTries=2)["a"]
        assert isinstance(found, NoAnswer)
        assert "does not fit the schema" in found.why
        assert len(server.seen) == 4


def test_probabilities_of_the_choices_are_told_where_the_server_tells_them(store: Store) -> None:
    odds = {"Yes": -0.1053, " yes": -4.0, "No": -2.3026, "Maybe": -1.0}
    with Server(say=lambda _asked: "Yes", probabilities=odds) as server:
        asked = {"a": Question("A dog?", pictures=(painted("red"),), choices=("yes", "no"))}
        found = answers(server, store, asked)["a"]
        assert isinstance(found, Answer)
        assert found.probabilities is not None
        assert found.probabilities["yes"] == pytest.approx(0.902, abs=0.01)
        assert sum(found.probabilities.values()) == pytest.approx(1)
        kept = answers(server, store, asked)["a"]
        assert isinstance(kept, Answer)
        assert kept.probabilities == found.probabilities


def test_a_budget_of_tokens_stops_before_it_is_overdrawn(server: Server, store: Store) -> None:
    many = questions(40)
    with pytest.raises(BudgetSpent, match=r"budget\.maxTokens"):
        answers(server, store, many, budget={"maxTokens": 3000})
    assert server.seen == []


def test_a_budget_that_runs_out_on_the_way_keeps_what_was_answered(
    server: Server, store: Store
) -> None:
    small = {name: Question(q.text, q.pictures, max_tokens=16) for name, q in questions(20).items()}
    with pytest.raises(BudgetSpent, match=r"budget\.maxCost") as caught:
        answers(
            server,
            store,
            small,
            budget={
                "maxCost": "0.0005",
                "pricePerPromptToken": "4.2e-7",
                "pricePerCompletionToken": "1.25e-6",
            },
        )
    assert caught.value.reason == "BudgetSpent"
    with opened(server, store) as client:
        spent = client.spending.spent
        priced = opened(server, store, budget={"pricePerPromptToken": "4.2e-7"})
        assert 0 < spent.calls < 20
        assert priced.spending.told().cost == f"{spent.prompt_tokens * 42 / 10**8:f}".rstrip("0")
        assert len([q for q in small.values() if client.kept(q)]) == spent.calls


def test_an_answer_altered_in_the_store_is_asked_again(server: Server, store: Store) -> None:
    answers(server, store, questions(1))
    keys = [e.key for e in store.list("sessions") if not e.key.endswith("spent.json")]
    store.write(keys[0], b'{"version": 1, "identity": "sha256:00", "text": "evil"}')
    server.seen.clear()
    assert texts(answers(server, store, questions(1))) == {"0.png": "a red picture"}
    assert len(server.seen) == 1
