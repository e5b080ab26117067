"""Low-rank updates between the names of kohya and of peft, alpha kept."""

from __future__ import annotations

from kubebooth_trainer.convert.detection import Detected
from kubebooth_trainer.convert.door import Opened, Plan
from kubebooth_trainer.convert.options import Options
from kubebooth_trainer.errors import ConfigurationError


def plan(opened: Opened, options: Options, found: Detected) -> Plan:
    """What a LoRA becomes. Raises `ConfigurationError` and `DataError`."""
    raise ConfigurationError("a LoRA is not converted by this version")
