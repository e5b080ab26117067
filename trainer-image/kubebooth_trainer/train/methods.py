"""What an optimizer asks of the worker it runs in; what goes together at all is the contract's."""

from __future__ import annotations

import importlib.util
import logging

from kubebooth_api import combinations
from kubebooth_api.v1alpha1.training import Training

from kubebooth_trainer.errors import ConfigurationError

LEAST_FOR_PRODIGY = 0.1
"""Prodigy finds the learning rate itself and multiplies it by the one that is set."""
log = logging.getLogger(__name__)


def refuse_optimizer(training: Training) -> None:
    """Raise `ConfigurationError` that names the field and the cure; warn of what will not learn."""
    if training.optimizer == "AdamW8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            "training.optimizer AdamW8bit needs the package bitsandbytes, which this worker does"
            " not have; install the extra kubebooth[quantized], or use AdamW or Adafactor",
            reason="LibraryMissing",
        )
    if training.optimizer != "Prodigy":
        return
    for fault in combinations.optimizer_faults(training):
        raise ConfigurationError(str(fault))
    text, denoiser = training.text_encoder, training.denoiser
    for name, stage in (("textEncoder", text), ("denoiser", denoiser)):
        if stage.steps > 0 and stage.learning_rate < LEAST_FOR_PRODIGY:
            log.warning(
                "training.%s.learningRate %s with training.optimizer Prodigy: it finds the rate"
                " itself and multiplies it by this one, so that little will be learned; set it to"
                " 1",
                name,
                stage.learning_rate,
            )
