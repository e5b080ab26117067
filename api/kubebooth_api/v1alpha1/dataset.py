"""The user's pictures: concepts, their sources, preprocessing and captions."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1.common import (
    ConfigMapSource,
    DnsLabel,
    Prompt,
    PvcSource,
    SecretKeyRef,
    ShortText,
    StoreSource,
    Url,
    UrlSource,
    exactly_one,
)


class ImageSource(Door):
    """One place with pictures (and captions as `.txt` files of the same stem)."""

    store: StoreSource | None = None
    """A prefix of the session's store."""
    archive: StoreSource | None = None
    """A zip or tar archive in the session's store."""
    url: UrlSource | None = None
    """A picture or an archive behind a URL."""
    persistent_volume_claim: PvcSource | None = None
    """A folder on a volume."""
    config_map: ConfigMapSource | None = None
    """Small pictures in a ConfigMap's `binaryData`."""
    notebook_session: StoreSource | None = None
    """A session folder of the notebook (`instance_images/`, `captions/`) copied to the store."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one(
            "store",
            "archive",
            "url",
            "persistentVolumeClaim",
            "configMap",
            "notebookSession",
            of="each entry of concepts[].sources",
        ),
    )


class Concept(Door):
    """One subject that the model learns."""

    name: DnsLabel
    """Name of the concept, unique in the session."""
    token: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^\S(.*\S)?$")]
    """Rare word that calls the subject, such as `sks`."""
    class_name: ShortText | None = None
    """Ordinary word for what it is, such as `dog`."""
    instance_prompt: Prompt | None = None
    """Prompt of pictures without caption; absent is `<token> <className>`."""
    sources: Annotated[tuple[ImageSource, ...], Field(max_length=16)] = ()
    """Where the pictures are; absent takes what was uploaded for this session."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each picture counts in one pass over the dataset."""


class Preprocess(Door):
    """How pictures become square training pictures."""

    crop: Literal["Center", "Smart", "Pad", "None"] = "Center"
    """Which part of a picture is kept."""
    min_images: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Fewest usable pictures a session may train on."""
    bad_files: Literal["Fail", "Exclude"] = "Fail"
    """What happens when a file is not a usable picture: `Fail` names it and stops before an
    accelerator is asked for, `Exclude` names it and goes on."""
    min_edge: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Shortest edge a picture may have in pixels; absent is half the training resolution."""


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


class VisionModel(Door):
    """A vision-language model behind an OpenAI-compatible chat API."""

    endpoint: Url | None = None
    """Base address ending in `/v1`; absent runs the native sidecar."""
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """Model name sent with every request."""
    api_key_secret_ref: SecretKeyRef | None = None
    """Bearer token of the endpoint."""
    detail: Literal["Tags", "Short", "Medium", "Long"] = "Medium"
    """How much a caption tells."""
    prompt: Prompt | None = None
    """Own instruction instead of the one that belongs to `detail`."""
    max_concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Requests in flight at once."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 120
    """Longest wait for one answer, in seconds."""
    on_error: Literal["Fail", "Skip"] = "Fail"
    """What happens when a picture cannot be captioned."""
    budget: Budget | None = None
    """Bounds on what captioning may spend."""


class Captions(Door):
    """Where each picture's prompt comes from."""

    mode: Literal["None", "Files", "Model", "FilesThenModel"] = "Files"
    """`None` uses the instance prompt, `Files` reads `.txt` files of the same stem and falls back
    to the instance prompt, `Model` asks the vision-language model, `FilesThenModel` asks it only
    for pictures without a file."""
    prefix: Prompt = ""
    """Text put before every caption; `{token}` and `{class}` are filled in."""
    suffix: Prompt = ""
    """Text put after every caption; `{token}` and `{class}` are filled in."""
    model: VisionModel | None = None
    """The vision-language model; required by modes that ask it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(self.mode in ['Model', 'FilesThenModel']) || has(self.model)",
            "captions.mode asks a vision-language model: name it in captions.model",
        ),
    )
