"""Which low-rank shapes and optimizers go together with the rest of a training; pure."""

from __future__ import annotations

import importlib.util
import logging

from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import TrainRun
from kubebooth_api.v1alpha1.training import Training

from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.train.stages import plan_stages, trained_parts

LEAST_FOR_PRODIGY = 0.1
"""Prodigy finds the learning rate itself and multiplies it by the one that is set."""
log = logging.getLogger(__name__)


def refuse_methods(run: TrainRun) -> None:
    """Raise `ConfigurationError` that names the field and the cure; warn of what will not learn."""
    if run.training.method == "LoRA":
        _refuse_lora(run)
    elif run.training.lora is not None:
        raise ConfigurationError(
            "training.lora is only read with training.method: LoRA; set the method or remove lora"
        )
    refuse_optimizer(run.training)


def _refuse_lora(run: TrainRun) -> None:
    training, lora = run.training, run.training.lora
    if lora is None:
        return
    family = BASE_MODELS[run.variant].family
    parts = trained_parts(plan_stages(training))
    if "Convolution" in lora.targets and family == "flux":
        raise ConfigurationError(
            "training.lora.targets Convolution: a transformer such as Flux has no convolutions; use"
            " Attention and FeedForward"
        )
    if tuple(lora.targets) == ("Convolution",) and "textEncoder" in parts:
        raise ConfigurationError(
            "training.lora.targets Convolution: the text encoder has no convolutions; add Attention"
            " or set training.textEncoder.steps to 0"
        )
    if lora.dora and family == "flux":
        raise ConfigurationError(
            "training.lora.dora: web UIs join the layers of Flux, and a joined DoRA would need the"
            " lengths of weights it does not train; turn dora off for Flux"
        )
    if lora.dora and training.memory.quantized_base != "None":
        raise ConfigurationError(
            "training.lora.dora measures the base's weights, which"
            f" training.memory.quantizedBase {training.memory.quantized_base} rounds; turn one off"
        )


def refuse_optimizer(training: Training) -> None:
    """The same for what an optimizer asks of the rest."""
    if training.optimizer == "AdamW8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            "training.optimizer AdamW8bit needs the package bitsandbytes, which this worker does"
            " not have; install the extra kubebooth[quantized], or use AdamW or Adafactor",
            reason="LibraryMissing",
        )
    if training.optimizer != "Prodigy":
        return
    text, denoiser = training.text_encoder, training.denoiser
    if text.mode == "Joint" and text.steps > 0 and _rate(text) != _rate(denoiser):
        raise ConfigurationError(
            "training.optimizer Prodigy has one learning rate for everything: with"
            " training.textEncoder.mode Joint set learningRate, lrScheduler and warmupSteps of"
            " textEncoder and denoiser alike, at best learningRate: 1"
        )
    for name, stage in (("textEncoder", text), ("denoiser", denoiser)):
        if stage.steps > 0 and stage.learning_rate < LEAST_FOR_PRODIGY:
            log.warning(
                "training.%s.learningRate %s with training.optimizer Prodigy: it finds the rate"
                " itself and multiplies it by this one, so that little will be learned; set it to"
                " 1",
                name,
                stage.learning_rate,
            )


def _rate(stage: object) -> tuple[object, ...]:
    return tuple(getattr(stage, name) for name in ("learning_rate", "lr_scheduler", "warmup_steps"))
