"""Questions in, answers out: kept ones for nothing, others under a budget, with patience.

Failed tries are asked again with growing pauses; a server that fails for everybody is left alone
for a while and then given up. It must not know what the questions are about.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event
from typing import Any

from kubebooth_api.v1alpha1.vision import VisionModel

from kubebooth_trainer.errors import Preempted, StorageFault
from kubebooth_trainer.vision.answers import Answers, Kept
from kubebooth_trainer.vision.questions import Question
from kubebooth_trainer.vision.spending import Spending, Usage, worst_case
from kubebooth_trainer.vision.structured import NotFitting, parse
from kubebooth_trainer.vision.wire import Capabilities, Declined, FailedTry, Message, Said, Wire

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
BREAK_AFTER = 8
"""Failures in a row, over all questions, after which the server is left alone."""
MOST_BREAKS = 3
"""Breaks after which it is given up."""
KNOWN = {
    "Vllm": Capabilities(structured=True, thinking_switch=True, logprobs=True),
    "FastDeploy": Capabilities(structured=True, thinking_switch=True),
    "Sglang": Capabilities(structured=True, thinking_switch=True, logprobs=True),
    "OpenAI": Capabilities(structured=True, logprobs=True),
    "Transformers": Capabilities(thinking_switch=True),
}
"""What the servers' documentation promises; `Auto` asks the server itself."""


class VisionUnavailable(StorageFault):
    """The server stayed away; what was answered is kept, so another try goes on from there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="VisionUnavailable")


@dataclass(frozen=True)
class Answer:
    """An answer and where it comes from."""

    text: str
    value: Any
    """The JSON value, when a schema was given."""
    probabilities: dict[str, float] | None
    usage: Usage
    """What it cost when it was asked."""
    model: str
    kept: bool
    """Whether it was kept from an earlier time."""


@dataclass(frozen=True)
class NoAnswer:
    """A question that could not be answered, and why."""

    why: str


class Client:
    """Asks one model. Thread-safe; a context manager."""

    def __init__(
        self,
        model: VisionModel,
        *,
        endpoint: str,
        key: str | None,
        answers: Answers,
        stop: Event,
    ) -> None:
        self._model, self._answers, self._stop = model, answers, stop
        self._wire = Wire(endpoint, model.model, key, float(model.timeout_seconds))
        self.spending = Spending(model.budget, spent=answers.spent(), on_change=answers.note_spent)
        self._capabilities = KNOWN.get(model.dialect)
        self._probing = threading.Lock()
        self._breaker = _Breaker(stop, endpoint)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.close()

    def kept(self, question: Question) -> Answer | None:
        """The kept answer to a question, when it still fits."""
        found = self._answers.get(question.identity(self._model.model))
        if found is None:
            return None
        try:
            value = parse(found.text, question.schema) if question.schema is not None else None
        except NotFitting:
            return None
        return Answer(found.text, value, found.probabilities, found.usage, found.model, True)

    def estimate(self, questions: Mapping[str, Question]) -> Usage:
        """What answering is expected to cost, kept answers for nothing."""
        total = Usage()
        for question in questions.values():
            if self.kept(question) is None:
                total += Usage(1, question.prompt_tokens, question.max_tokens // 2)
        return total

    def ask_all(
        self, questions: Mapping[str, Question], *, on_done: Callable[[str], None]
    ) -> dict[str, Answer | NoAnswer]:
        """Answers by name, in the order of the questions; equal questions are asked once.

        Raises `BudgetSpent`, `VisionUnavailable`, `ConfigurationError` and `Preempted`; what was
        answered before is kept.
        """
        self.spending.check(self.estimate(questions))
        same: dict[str, list[str]] = {}
        for name, question in questions.items():
            same.setdefault(question.identity(self._model.model), []).append(name)
        found: dict[str, Answer | NoAnswer] = {}
        halt = Event()

        def one(question: Question) -> Answer | NoAnswer | None:
            return None if halt.is_set() else self.ask(question)

        with ThreadPoolExecutor(self._model.max_concurrency, "vision") as pool:
            running = {pool.submit(one, questions[names[0]]): names for names in same.values()}
            try:
                for future in as_completed(running):
                    answer = future.result()
                    if answer is None:
                        continue
                    for name in running[future]:
                        found[name] = answer
                        on_done(name)
            finally:
                halt.set()
        return {name: found[name] for name in questions if name in found}

    def ask(self, question: Question) -> Answer | NoAnswer:
        """One answer, kept or new. Raises as `ask_all` does."""
        known = self.kept(question)
        if known is not None:
            return known
        why = "never tried"
        for number in range(self._model.max_tries):
            if self._stop.is_set():
                raise Preempted("stopped while asking the model; what was answered is kept")
            self._breaker.wait()
            try:
                return self._once(question)
            except FailedTry as failure:
                why = str(failure)
                self._breaker.failed(why) if failure.transport else self._breaker.succeeded()
                if number + 1 < self._model.max_tries:
                    self._stop.wait(_pause(number, failure.retry_after_s))
            except Declined as refusal:
                return NoAnswer(str(refusal))
        return NoAnswer(f"{why} ({self._model.max_tries} tries)")

    def _once(self, question: Question) -> Answer:
        capabilities = self._known_capabilities()
        said, value = self._paid(question, capabilities, ())
        if isinstance(value, NotFitting):
            repair: tuple[Message, ...] = (
                {"role": "assistant", "content": said.text},
                {
                    "role": "user",
                    "content": f"That does not fit: {value}. Answer again with the JSON only.",
                },
            )
            first = said
            said, value = self._paid(question, capabilities, repair)
            said = Said(said.text, said.model, first.usage + said.usage, said.probabilities)
            if isinstance(value, NotFitting):
                raise FailedTry(
                    f"the answer does not fit the schema: {value}", usage=Usage(), transport=False
                )
        kept = Kept(said.text, said.probabilities, said.model, said.usage)
        self._answers.put(question.identity(self._model.model), kept)
        return Answer(said.text, value, said.probabilities, said.usage, said.model, False)

    def _paid(
        self, question: Question, capabilities: Capabilities, earlier: tuple[Message, ...]
    ) -> tuple[Said, Any]:
        """One request under the budget; a `NotFitting` as value when it is not of the schema."""
        worst = worst_case(
            prompt_tokens=question.prompt_tokens + sum(len(str(m["content"])) for m in earlier),
            max_tokens=question.max_tokens,
        )
        self.spending.reserve(worst)
        paid = Usage()
        try:
            said = self._wire.send(question, capabilities, earlier=earlier)
            paid = said.usage
        except FailedTry as failure:
            paid = failure.usage
            raise
        finally:
            self.spending.settle(worst, paid)
        self._breaker.succeeded()
        if question.schema is None:
            return said, None
        try:
            return said, parse(said.text, question.schema)
        except NotFitting as error:
            return said, error

    def _known_capabilities(self) -> Capabilities:
        with self._probing:
            if self._capabilities is None:
                worst = worst_case(prompt_tokens=64, max_tokens=32)
                self.spending.reserve(worst)
                paid = Usage()
                try:
                    self._capabilities, paid = self._wire.probe()
                finally:
                    self.spending.settle(worst, paid)
            return self._capabilities


class _Breaker:
    """Leaves a server alone that fails for everybody. Thread-safe."""

    def __init__(self, stop: Event, endpoint: str) -> None:
        self._stop, self._endpoint = stop, endpoint
        self._lock = threading.Lock()
        self._failures, self._breaks, self._closed_at = 0, 0, 0.0

    def wait(self) -> None:
        """Wait while the server is left alone. Raises `VisionUnavailable` when it is given up."""
        with self._lock:
            if self._breaks >= MOST_BREAKS:
                raise VisionUnavailable(
                    f"captions.model.endpoint {self._endpoint} keeps failing ({self._why}); check"
                    " the server, then retry: what was answered is kept"
                )
            left = self._closed_at - time.monotonic()
        if left > 0:
            self._stop.wait(left)

    def failed(self, why: str) -> None:
        """Tell a failure of the server."""
        with self._lock:
            self._why = why
            self._failures += 1
            if self._failures >= BREAK_AFTER:
                self._failures, self._breaks = 0, self._breaks + 1
                self._closed_at = time.monotonic() + _pause(2 * self._breaks, None)

    def succeeded(self) -> None:
        """Tell that the server answers."""
        with self._lock:
            self._failures = self._breaks = 0


def _pause(number: int, asked_s: float | None) -> float:
    """Growing pauses with jitter, never shorter than the server asked for."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**number)
    return max(random.uniform(longest / 2, longest), min(asked_s or 0.0, LONGEST_PAUSE_S))
