"""Says no to what this version cannot train, by field name, before anything is fetched."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import TrainRun

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families import flux, recognition, sd, sdxl
from kubebooth_trainer.families.door import Load
from kubebooth_trainer.families.files import read_json
from kubebooth_trainer.train.methods import refuse_methods

FAMILIES: dict[str, Load] = {"sd": sd.load, "sdxl": sdxl.load, "flux": flux.load}
MOST_ARTIFACTS = 4
"""A report has room for so many."""


def family_of(run: TrainRun) -> Load:
    """The loader of the run's variant. Raises `ConfigurationError`."""
    row = BASE_MODELS.get(run.variant)
    if row is None or row.family not in FAMILIES:
        known = sorted(v for v, r in BASE_MODELS.items() if r.family in FAMILIES)
        raise ConfigurationError(
            f"baseModel.variant {run.variant} cannot be trained by this version; use one of"
            f" {', '.join(known)}"
        )
    return FAMILIES[row.family]


def refuse_other_base(run: TrainRun, folder: Path) -> None:
    """Raise `DataError` with the evidence when the fetched base model is not of the variant."""
    try:
        recognition.check(run.variant, partial(read_json, folder))
    except recognition.Unfit as error:
        raise DataError(
            f"base model: {error}; choose the baseModel.variant that fits, or another model",
            reason="VariantMismatch",
        ) from error


def refuse_unsupported(run: TrainRun) -> None:
    """Raise `ConfigurationError` that names the first field this version cannot honour."""
    training = run.training
    for field, present in _absent(run).items():
        if present:
            raise ConfigurationError(f"{field} is not in this version; remove it")
    if BASE_MODELS[run.variant].prediction_type == "flow":
        _refuse_for_flow(run)
    else:
        _refuse_for_diffusion(run)
    refuse_methods(run)
    _refuse_contradictions(run)


def _refuse_for_flow(run: TrainRun) -> None:
    training = run.training
    if training.min_snr_gamma is not None:
        raise ConfigurationError(
            "training.minSnrGamma weighs signal against noise, for which flow matching has no such"
            f" weights; remove it for {run.variant}"
        )
    if training.offset_noise > 0:
        raise ConfigurationError(
            "training.offsetNoise mends schedules that never reach pure noise, and flow matching"
            f" starts from it; remove it for {run.variant}"
        )


def _refuse_for_diffusion(run: TrainRun) -> None:
    training = run.training
    if training.timestep_sampling == "FluxShift":
        raise _no("timestepSampling", "FluxShift", f"{run.variant} takes Uniform or LogitNormal")
    if training.guidance != 1.0:
        raise _no("guidance", str(training.guidance), "only Flux reads it: remove it")


def _absent(run: TrainRun) -> dict[str, bool]:
    """Fields that nothing in this version reads → whether they are set."""
    training = run.training
    return {
        "training.memory.quantizedBase": training.memory.quantized_base != "None",
        "training.compile": training.compile,
        "trackers.tensorBoard": run.trackers.tensor_board,
        "trackers.mlflow": run.trackers.mlflow is not None,
        "trackers.wandb": run.trackers.wandb is not None,
    }


def _refuse_contradictions(run: TrainRun) -> None:
    training = run.training
    refuse_unprepared(run)
    if training.ema is not None and training.denoiser.steps == 0:
        raise ConfigurationError(
            "training.ema averages the denoiser, which is not trained with"
            " training.denoiser.steps 0; remove ema or raise the steps"
        )
    if run.checkpoints.keep_best > 0 and training.validation is None:
        raise ConfigurationError(
            "checkpoints.keepBest goes by the validation loss; set training.validation or remove"
            " keepBest"
        )
    if training.validation is not None and training.denoiser.steps == 0:
        raise ConfigurationError(
            "training.validation measures while the denoiser trains, which training.denoiser.steps"
            " 0 leaves out; remove validation or raise the steps"
        )
    if training.text_encoder.mode == "Joint" and training.denoiser.steps == 0:
        raise ConfigurationError(
            "training.textEncoder.mode Joint trains for training.denoiser.steps, which is 0; raise"
            " it or use mode Frozen"
        )
    if training.text_encoder.steps == 0 and training.denoiser.steps == 0:
        raise ConfigurationError(
            "nothing to train: set training.textEncoder.steps or training.denoiser.steps above 0"
        )
    row = BASE_MODELS[run.variant]
    if training.zero_terminal_snr and row.prediction_type != "v_prediction":
        raise ConfigurationError(
            f"training.zeroTerminalSnr needs a base model that predicts v, {run.variant} predicts"
            f" {row.prediction_type}; turn it off or use baseModel.variant sd21-768"
        )
    if training.mixed_precision not in ("Auto", *row.mixed_precisions):
        raise ConfigurationError(
            f"training.mixedPrecision {training.mixed_precision} does not do for {run.variant}; use"
            f" one of Auto, {', '.join(row.mixed_precisions)}"
        )
    if run.resolution % 8:
        raise ConfigurationError(f"resolution {run.resolution} is no multiple of 8; use 512")
    if run.resolution > row.greatest_resolution:
        raise ConfigurationError(
            f"training.resolution {run.resolution} is more than {run.variant} can paint; use"
            f" {row.native_resolution}, at most {row.greatest_resolution}"
        )
    wanted = [output.name for output in run.outputs if output.format == "Diffusers"]
    if len(wanted) > MOST_ARTIFACTS:
        raise ConfigurationError(
            f"outputs asks for {len(wanted)} Diffusers artifacts; at most {MOST_ARTIFACTS} fit"
        )


def refuse_unprepared(run: TrainRun) -> None:
    """Raise `ConfigurationError` when pictures that a stage needs were not prepared for it."""
    training = run.training
    edge = training.text_encoder.resolution
    if edge is not None and edge > run.resolution:
        raise ConfigurationError(
            f"training.textEncoder.resolution {edge} is above the session's {run.resolution}:"
            " pictures would be enlarged; lower it, or raise training.resolution"
        )
    prior = training.prior_preservation
    if prior is not None and prior.sources and run.class_images is None:
        raise ConfigurationError(
            "training.priorPreservation.sources: these pictures were not prepared; prepare them as"
            " classSources and name what the report tells as classImages of the Run"
        )
    if training.concept_stage is not None and run.concept_images is None:
        raise ConfigurationError(
            "training.conceptStage.sources: these pictures were not prepared; prepare them as"
            " conceptSources and name what the report tells as conceptImages of the Run"
        )


def _no(field: str, value: str, cure: str) -> ConfigurationError:
    return ConfigurationError(f"training.{field} {value} is not in this version; {cure}")
