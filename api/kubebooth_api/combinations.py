"""Which settings of a training go together: pure rules that operator and trainer share.

Values that are wrong by themselves are the schema's; here are those that are only wrong together,
or only for one variant. Nothing here knows weights, files or Kubernetes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kubebooth_api.catalog import BASE_MODELS, BaseModelRow
from kubebooth_api.v1alpha1.base_model import Variant
from kubebooth_api.v1alpha1.publish import Output
from kubebooth_api.v1alpha1.training import Checkpoints, Training

MOST_PUBLISHED = 4
"""Most artifacts in the Diffusers layout: a report has room for so many."""


@dataclass(frozen=True)
class Fault:
    """Why a combination cannot be trained."""

    field: str
    """Path below the spec or the Run, such as `training.mixedPrecision`."""
    message: str
    """What is wrong and the cure: a sentence that begins with the field."""

    def __str__(self) -> str:
        return f"{self.field} {self.message}"


def faults(
    *,
    variant: Variant,
    training: Training,
    resolution: int,
    checkpoints: Checkpoints,
    outputs: Sequence[Output] = (),
) -> Iterator[Fault]:
    """Everything wrong with a training of a variant at a resolution in pixels; nothing when it can
    be tried."""
    row = BASE_MODELS[variant]
    yield from _resolutions(row, training, resolution)
    yield from _precisions(row, training)
    yield from _objective(row, training)
    yield from _stages(training)
    yield from _method(training, outputs)
    yield from _lora(row, training)
    yield from optimizer_faults(training)
    if checkpoints.keep_best and training.validation is None:
        yield Fault(
            "checkpoints.keepBest",
            "goes by the validation loss; set training.validation or remove it",
        )


def _resolutions(row: BaseModelRow, training: Training, resolution: int) -> Iterator[Fault]:
    native = row.native_resolution
    edges = {"training.resolution": resolution}
    if training.text_encoder.resolution is not None and training.text_encoder.steps:
        edges["training.textEncoder.resolution"] = training.text_encoder.resolution
        if training.text_encoder.resolution > resolution:
            yield Fault(
                "training.textEncoder.resolution",
                f"{training.text_encoder.resolution} is above the session's {resolution}: pictures"
                " would be enlarged; lower it, or raise training.resolution",
            )
    for field, edge in edges.items():
        if edge > row.greatest_resolution:
            yield Fault(
                field,
                f"{edge} is more than {row.variant} can paint; use {native}, at most"
                f" {row.greatest_resolution}",
            )
        elif edge > native and not training.allow_non_native_resolution:
            yield Fault(
                field,
                f"{edge} is above the native resolution {native} of {row.variant}; lower it or set"
                " training.allowNonNativeResolution: true",
            )


def _precisions(row: BaseModelRow, training: Training) -> Iterator[Fault]:
    asked = training.mixed_precision
    if asked != "Auto" and asked not in row.mixed_precisions:
        able = " or ".join(("Auto", *row.mixed_precisions))
        yield Fault(
            "training.mixedPrecision",
            f"{asked} does not do for {row.variant}; use {able}",
        )


def _objective(row: BaseModelRow, training: Training) -> Iterator[Fault]:
    predicts, flow = row.prediction_type, row.prediction_type == "flow"
    if training.zero_terminal_snr and predicts != "v_prediction":
        yield Fault(
            "training.zeroTerminalSnr",
            f"needs a base model that predicts v, and {row.variant} predicts {predicts}; turn it"
            " off or use baseModel.variant sd21-768",
        )
    if training.min_snr_gamma is not None and flow:
        yield Fault(
            "training.minSnrGamma",
            "weighs signal against noise, and flow matching has no such weights; remove it for"
            f" {row.variant}",
        )
    if training.offset_noise > 0 and flow:
        yield Fault(
            "training.offsetNoise",
            "mends schedules that never reach pure noise, and flow matching starts from it; remove"
            f" it for {row.variant}",
        )
    if training.timestep_sampling == "FluxShift" and not flow:
        yield Fault(
            "training.timestepSampling",
            f"FluxShift shifts flow matching; {row.variant} takes Auto, Uniform or LogitNormal",
        )
    if training.guidance != 1.0 and row.family != "flux":
        yield Fault(
            "training.guidance",
            f"{training.guidance:g} is read by Flux only; remove it for {row.variant}",
        )


def _stages(training: Training) -> Iterator[Fault]:
    text_encoder, denoiser = training.text_encoder, training.denoiser
    if text_encoder.steps == 0 and denoiser.steps == 0:
        yield Fault(
            "training",
            "has nothing to train: set training.textEncoder.steps or training.denoiser.steps above"
            " 0",
        )
        return
    if training.ema is not None and denoiser.steps == 0:
        yield Fault(
            "training.ema",
            "averages the denoiser, which is not trained with training.denoiser.steps 0; remove"
            " ema or raise the steps",
        )
    if text_encoder.mode == "Joint" and denoiser.steps == 0:
        yield Fault(
            "training.textEncoder.mode",
            "Joint trains for training.denoiser.steps, which is 0; raise it or use mode Frozen",
        )
    if training.validation is not None and denoiser.steps == 0:
        yield Fault(
            "training.validation",
            "is measured while the denoiser is trained, which training.denoiser.steps 0 leaves out;"
            " remove it or raise the steps",
        )


def _lora(row: BaseModelRow, training: Training) -> Iterator[Fault]:
    lora = training.lora
    if lora is None or training.method != "LoRA":
        return
    if "Convolution" in lora.targets and row.family == "flux":
        yield Fault(
            "training.lora.targets",
            "Convolution: a transformer such as Flux has no convolutions; use Attention and"
            " FeedForward",
        )
    elif tuple(lora.targets) == ("Convolution",) and training.text_encoder.steps > 0:
        yield Fault(
            "training.lora.targets",
            "Convolution: the text encoder has no convolutions; add Attention or set"
            " training.textEncoder.steps to 0",
        )
    if lora.dora and row.family == "flux":
        yield Fault(
            "training.lora.dora",
            "would need the lengths of weights it does not train, since web UIs join the layers of"
            " Flux; turn it off for Flux",
        )
    if lora.dora and training.memory.quantized_base != "None":
        yield Fault(
            "training.lora.dora",
            "measures the base's weights, which training.memory.quantizedBase"
            f" {training.memory.quantized_base} rounds; turn one off",
        )


def optimizer_faults(training: Training) -> Iterator[Fault]:
    """What is wrong with the optimizer of a training."""
    text, denoiser = training.text_encoder, training.denoiser
    if training.optimizer != "Prodigy" or text.mode != "Joint" or text.steps == 0:
        return
    rates = [
        (stage.learning_rate, stage.lr_scheduler, stage.warmup_steps) for stage in (text, denoiser)
    ]
    if rates[0] != rates[1]:
        yield Fault(
            "training.optimizer",
            "Prodigy has one learning rate for everything: with training.textEncoder.mode Joint set"
            " learningRate, lrScheduler and warmupSteps of textEncoder and denoiser alike, at best"
            " learningRate: 1",
        )


def _method(training: Training, outputs: Sequence[Output]) -> Iterator[Fault]:
    lora = training.method == "LoRA"
    if training.lora is not None and not lora:
        yield Fault(
            "training.lora", "is only read with training.method: LoRA; set that or remove it"
        )
    if training.memory.quantized_base != "None" and not lora:
        yield Fault(
            "training.memory.quantizedBase",
            "freezes the base: set training.method: LoRA, or quantizedBase: None",
        )
    if training.caption_keep_tokens and not training.caption_shuffle:
        yield Fault(
            "training.captionKeepTokens",
            "is only read with training.captionShuffle: true; set that or remove it",
        )
    if lora and any(output.format == "Ckpt" for output in outputs):
        yield Fault(
            "outputs",
            "asks for a CKPT, which no UI reads of a LoRA; use format Safetensors, which has the"
            " names that every UI knows, or Diffusers",
        )
    published = sum(output.format == "Diffusers" for output in outputs)
    if published > MOST_PUBLISHED:
        yield Fault(
            "outputs",
            f"asks for {published} Diffusers artifacts; at most {MOST_PUBLISHED} fit",
        )
