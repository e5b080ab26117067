"""Low-rank updates added to a model's weights."""

from __future__ import annotations

from collections.abc import Sequence

from kubebooth_trainer.convert.detection import Detected
from kubebooth_trainer.convert.models import Model
from kubebooth_trainer.convert.options import Merged
from kubebooth_trainer.errors import ConfigurationError


def merged(model: Model, updates: Sequence[Merged], found: Detected) -> Model:
    """The model with every update added. Raises `ConfigurationError`."""
    raise ConfigurationError("mergeLoras is not done by this version; leave it out")
