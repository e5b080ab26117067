"""One request to an OpenAI chat API: what is sent, what an answer is, and which errors pass.

The only importer of `openai`. It tries once; whoever calls decides whether to try again.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import openai

from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.vision.questions import Question
from kubebooth_trainer.vision.spending import Usage

TOP_TOKENS = 20
_THOUGHT = re.compile(r"^.*?</think>", re.DOTALL | re.IGNORECASE)
Message = dict[str, Any]


@dataclass(frozen=True)
class Capabilities:
    """Which extensions a server heeds. All servers do without them."""

    structured: bool = False
    """`response_format` with a JSON Schema."""
    thinking_switch: bool = False
    """`chat_template_kwargs.enable_thinking`."""
    logprobs: bool = False
    """Log probabilities of the answer's tokens."""


@dataclass(frozen=True)
class Said:
    """An answer of the server."""

    text: str
    model: str
    usage: Usage
    probabilities: dict[str, float] | None = None


class FailedTry(Exception):
    """No usable answer this time; the same request may work again. `usage` was paid all the same,
    `transport` tells that the server was not reached or broke."""

    def __init__(
        self, message: str, *, usage: Usage, transport: bool, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.usage, self.transport, self.retry_after_s = usage, transport, retry_after_s


class Declined(Exception):
    """The server will never answer this request."""


@dataclass
class Wire:
    """A connection to one server. Thread-safe."""

    endpoint: str
    model: str
    key: str | None
    timeout_s: float
    _client: openai.OpenAI = field(init=False)

    def __post_init__(self) -> None:
        self._client = openai.OpenAI(
            base_url=self.endpoint,
            api_key=self.key or "none",
            timeout=self.timeout_s,
            max_retries=0,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def send(
        self, question: Question, capabilities: Capabilities, *, earlier: tuple[Message, ...] = ()
    ) -> Said:
        """Ask once. `earlier` are turns that follow the question, as for a repair.

        Raises `FailedTry`, `Declined` and `ConfigurationError` (no access).
        """
        asked = self._asked(question, capabilities)
        asked["messages"] = [*asked["messages"], *earlier]
        reply = self._call(asked)
        return _read(reply, question)

    def probe(self) -> tuple[Capabilities, Usage]:
        """Find out by two tiny requests what the server heeds, and what they cost."""
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        plain = Question("Say hello.", schema=schema, choices=("yes", "no"), max_tokens=16)
        paid, switch = Usage(), True
        for thinking_switch in (True, False):
            asked = self._asked(plain, Capabilities(True, thinking_switch, True))
            # Not told in words: who answers in JSON all the same heeds the format.
            asked["messages"] = [{"role": "user", "content": "Say hello."}]
            try:
                reply = self._call(asked)
            except Declined:
                continue
            switch = thinking_switch
            paid += _usage(reply)
            choice = next(iter(reply.choices or ()), None)
            text = (choice.message.content or "") if choice is not None else ""
            heeds = choice is not None and choice.logprobs is not None
            return Capabilities(_is_json(text), switch, heeds), paid
        return Capabilities(), paid

    def _asked(self, question: Question, capabilities: Capabilities) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture.uri}}
            for picture in question.pictures
        ]
        text = question.text
        if question.schema is not None and not capabilities.structured:
            text = f"{text}\nAnswer with JSON only, of this JSON Schema: {_dumped(question.schema)}"
        content.append({"type": "text", "text": text})
        messages: list[Message] = [{"role": "user", "content": content}]
        if question.system:
            messages.insert(0, {"role": "system", "content": question.system})
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": question.max_tokens,
            "temperature": 0,
        }
        if question.schema is not None and capabilities.structured:
            asked["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(question.schema)},
            }
        if question.choices and capabilities.logprobs:
            asked |= {"logprobs": True, "top_logprobs": TOP_TOKENS}
        if capabilities.thinking_switch:
            asked["extra_body"] = {"chat_template_kwargs": {"enable_thinking": question.thinking}}
        return asked

    def _call(self, asked: dict[str, Any]) -> Any:
        try:
            return self._client.chat.completions.create(**asked)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigurationError(
                f"captions.model.endpoint {self.endpoint}: access is denied (HTTP"
                f" {error.status_code}); put a valid key into captions.model.apiKeySecretRef",
                reason="VisionDenied",
            ) from error
        except openai.NotFoundError as error:
            raise ConfigurationError(
                f"captions.model: {self.endpoint} has no model {self.model!r} or no chat API"
                " there; check endpoint (it ends in /v1) and model",
                reason="VisionNotFound",
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
                raise FailedTry(
                    f"HTTP {error.status_code}",
                    usage=Usage(),
                    transport=True,
                    retry_after_s=_retry_after(error),
                ) from error
            raise Declined(f"HTTP {error.status_code}: {_told(error)}") from error
        except openai.APIError as error:
            raise FailedTry(_told(error), usage=Usage(), transport=True) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise FailedTry(
                f"the answer is no JSON ({_told(error)})", usage=Usage(), transport=True
            ) from error


def _read(reply: Any, question: Question) -> Said:
    usage = _usage(reply)
    choice = next(iter(getattr(reply, "choices", None) or ()), None)
    message = getattr(choice, "message", None)
    if choice is None or message is None:
        raise FailedTry("the answer holds no choice", usage=usage, transport=False)
    text = _THOUGHT.sub("", str(message.content or "")).strip()
    finish: Literal["stop"] | str = choice.finish_reason or "stop"
    if finish == "length":
        raise FailedTry(
            f"the answer was cut off at {question.max_tokens} tokens",
            usage=usage,
            transport=False,
        )
    if not text:
        raise FailedTry(f"the answer is empty ({finish})", usage=usage, transport=False)
    probabilities = _probabilities(choice, question.choices) if question.choices else None
    return Said(text, str(getattr(reply, "model", "") or ""), usage, probabilities)


def _probabilities(choice: Any, choices: tuple[str, ...]) -> dict[str, float] | None:
    """Share of each allowed answer among the first words that the model weighed, if it told."""
    positions = getattr(getattr(choice, "logprobs", None), "content", None) or ()
    for position in positions:
        if not position.token.strip():
            continue
        weights = dict.fromkeys(choices, 0.0)
        for row in position.top_logprobs or ():
            word = row.token.strip().lower()
            for allowed in choices:
                if word and allowed.lower().startswith(word):
                    weights[allowed] += math.exp(min(0.0, float(row.logprob)))
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()} if total > 0 else None
    return None


def _usage(reply: Any) -> Usage:
    told = getattr(reply, "usage", None)
    counts = [
        value if isinstance(value, int) and value >= 0 else 0
        for value in (
            getattr(told, "prompt_tokens", 0),
            getattr(told, "completion_tokens", 0),
        )
    ]
    return Usage(1, *counts)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _dumped(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _retry_after(error: openai.APIStatusError) -> float | None:
    value = error.response.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else None


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
