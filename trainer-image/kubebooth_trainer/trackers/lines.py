"""What the training process tells a tracker's process: JSON objects, one a line, on its stdin.

The first line is `Opening`; each further one is `Scalars` or `Picture`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from kubebooth_api.door import Door
from pydantic import Field, TypeAdapter


class Opening(Door):
    """Which run is followed where. The token comes from the environment."""

    kind: Literal["opening"] = "opening"
    place: Annotated[str, Field(max_length=2048)]
    """Address of the server; empty is the library's own."""
    project: str
    """Experiment or project."""
    entity: str | None = None
    """User or team."""
    run: str
    """Identity of the run; the same after a restart."""
    name: str
    """What to call it."""
    settings: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    """What it is trained with."""


class Scalars(Door):
    """Readings after an update."""

    kind: Literal["scalars"] = "scalars"
    step: int
    """Updates since the very start, of all stages."""
    time_ms: int
    """Unix time in milliseconds."""
    values: Mapping[str, float]
    """Name → value."""


class Picture(Door):
    """A sheet of samples."""

    kind: Literal["picture"] = "picture"
    step: int
    """Updates since the very start, of all stages."""
    time_ms: int
    """Unix time in milliseconds."""
    name: str
    """What it shows."""
    path: str
    """PNG file; the reader may delete it."""


Line = Annotated[Opening | Scalars | Picture, Field(discriminator="kind")]
LINE: TypeAdapter[Opening | Scalars | Picture] = TypeAdapter(Line)
