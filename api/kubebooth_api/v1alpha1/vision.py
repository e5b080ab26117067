"""The vision-language model: where it is, what it may spend and what it is asked."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1.common import (
    ConfigMapKeyRef,
    DnsLabel,
    Prompt,
    Quantity,
    SecretKeyRef,
    ShortText,
    StoreSource,
    Url,
)


class Budget(Door):
    """Bounds on what captioning may spend."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most prompt and completion tokens together."""
    max_cost: (
        Annotated[str, StringConstraints(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?$")] | None
    ) = None
    """Most money, in the currency of the prices."""
    price_per_prompt_token: Annotated[
        str, StringConstraints(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?$")
    ] = "0"
    """Price of one prompt token, such as `4.2e-7`."""
    price_per_completion_token: Annotated[
        str, StringConstraints(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?$")
    ] = "0"
    """Price of one completion token."""


class Sidecar(Door):
    """The server that runs beside the prepare worker when no endpoint is named."""

    server: Literal["Transformers", "Vllm", "FastDeploy"] = "Transformers"
    """Program that serves the model; all but `Transformers` need an accelerator."""
    image: ShortText | None = None
    """Image of the server; absent uses the installation's."""
    weights: StoreSource | None = None
    """Model folder in the store; absent takes what the image carries."""
    cpu: Quantity = "2"
    """CPU cores."""
    memory: Quantity = "8Gi"
    """Memory."""
    gpu: Annotated[int, Field(ge=0, le=16)] = 0
    """Number of accelerators, held while the dataset is prepared and no longer."""
    startup_timeout_seconds: Annotated[int, Field(ge=10, le=7200)] = 1800
    """Longest wait for the model to load, in seconds."""


class VisionModel(Door):
    """A vision-language model behind an OpenAI-compatible chat API."""

    endpoint: Url | None = None
    """Base address ending in `/v1`; absent runs the native sidecar."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Model name sent with every request."""
    dialect: Literal["Auto", "OpenAI", "Vllm", "FastDeploy", "Sglang", "Transformers"] = "Auto"
    """Extensions of the server that may be used; `Auto` probes."""
    sidecar: Sidecar | None = None
    """The server that runs beside the prepare worker; only without `endpoint`."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Bearer token of the endpoint."""
    detail: Literal["Tags", "Short", "Medium", "Long"] = "Medium"
    """How much a caption tells."""
    thinking: bool = False
    """Let the model think before it answers; costs tokens and seldom helps captions."""
    max_answer_tokens: Annotated[int, Field(ge=1, le=16_384)] = 512
    """Longest answer in tokens."""
    max_image_edge: Annotated[int, Field(ge=64, le=8192)] | None = None
    """Pictures are scaled down to this edge in pixels before they are sent; absent is what the
    trainer sees."""
    prompt: Prompt | None = None
    """Own instruction instead of the one that belongs to `detail`."""
    max_concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Requests in flight at once."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 120
    """Longest wait for one answer, in seconds."""
    max_tries: Annotated[int, Field(ge=1, le=20)] = 4
    """Tries of one request, with back-off between them."""
    on_error: Literal["Fail", "Skip"] = "Fail"
    """What happens when a picture cannot be captioned."""
    budget: Budget | None = None
    """Bounds on what captioning may spend."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.endpoint) && has(self.sidecar))",
            "captions.model takes an endpoint or a sidecar, not both; remove one",
            ".sidecar",
        ),
    )


class Gate(Door):
    """A yes-or-no question that every picture must pass."""

    name: DnsLabel
    """Name of the gate, unique in the session."""
    question: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    """Question about one picture, such as `Is exactly one person visible?`."""
    expect: bool = True
    """Answer of a good picture: true is yes."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least probability of the expected answer, where the server tells probabilities."""
    policy: Literal["Warn", "Exclude", "Fail"] = "Warn"
    """What a failed gate does: a note, the picture is left out, the session fails."""


class Extraction(Door):
    """A table of facts read from the pictures, one row for each."""

    schema_ref: ConfigMapKeyRef
    """JSON Schema of a row."""
    prompt: Prompt | None = None
    """Own instruction; absent asks for the schema's fields."""
    policy: Literal["Warn", "Exclude", "Fail"] = "Warn"
    """What a picture without a valid row does."""
