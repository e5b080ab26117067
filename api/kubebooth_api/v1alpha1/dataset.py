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
    ShortText,
    StoreSource,
    UrlSource,
    exactly_one,
)
from kubebooth_api.v1alpha1.vision import Budget as Budget
from kubebooth_api.v1alpha1.vision import VisionModel as VisionModel

Policy = Literal["Ignore", "Warn", "Exclude", "Fail"]
"""What a finding does: nothing, a note, the picture is left out, the session fails."""
Lint = Literal[
    "MissingToken", "Identity", "MetaPhrase", "Refusal", "Repetition", "TooLong", "Duplicate"
]


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
    description: Prompt | None = None
    """What is true of the subject whatever a picture shows; told to the vision-language model."""
    invariants: Annotated[tuple[ShortText, ...], Field(max_length=32)] = ()
    """Words of the subject's identity, such as `red hair`, that captions must leave to the
    token."""
    token_from_filename: bool = False
    """The notebook's rule: the instance prompt is the file's stem without digits and brackets;
    the effective prompts are shown before training."""


class Buckets(Door):
    """Aspect-ratio buckets of about the same area as the training resolution squared."""

    step: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 64
    """Edges are multiples of this, in pixels."""
    max_aspect_ratio: Annotated[float, Field(ge=1, le=4)] = 2.0
    """Greatest ratio of long to short edge; longer pictures are cropped to it."""


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
    focus: Literal["Auto", "Face", "Subject", "Edges"] = "Auto"
    """What a smart crop keeps; `Auto` tries them in this order."""
    buckets: Buckets | None = None
    """Train in several aspect ratios instead of squares; absent crops to squares."""
    duplicates: Policy = "Warn"
    """What a picture does that is nearly the same as another."""
    blur: Policy = "Warn"
    """What a blurred picture does."""
    watermarks: Policy = "Ignore"
    """What a picture with overlaid text does."""


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
    token: Literal["AsIs", "Prefix", "Suffix"] = "AsIs"
    """Where a caption without the concept's token gets it; `AsIs` leaves captions alone."""
    required_words: Annotated[tuple[ShortText, ...], Field(max_length=64)] = ()
    """Words that every caption must have."""
    forbidden_words: Annotated[tuple[ShortText, ...], Field(max_length=64)] = ()
    """Words that no caption may have."""
    max_tokens: Annotated[int, Field(ge=1, le=512)] | None = None
    """Longest caption in tokens of the base model's text encoder; absent is what it can read."""
    lint: Policy = "Warn"
    """What a picture does whose caption has a finding."""
    ignored_lints: Annotated[tuple[Lint, ...], Field(max_length=7)] = ()
    """Findings that do not count."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(self.mode in ['Model', 'FilesThenModel']) || has(self.model)",
            "captions.mode asks a vision-language model: name it in captions.model",
        ),
    )
