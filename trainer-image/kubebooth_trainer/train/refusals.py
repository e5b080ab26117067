"""Says no to what this version cannot train, by field name, before anything is fetched."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from kubebooth_api import combinations
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.runs import TrainRun

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families import flux, recognition, sd, sdxl
from kubebooth_trainer.families.door import Load
from kubebooth_trainer.families.files import read_json
from kubebooth_trainer.train.memory_refusals import refuse_memory
from kubebooth_trainer.train.methods import refuse_optimizer

FAMILIES: dict[str, Load] = {"sd": sd.load, "sdxl": sdxl.load, "flux": flux.load}


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
    for fault in combinations.faults(
        variant=run.variant,
        training=run.training,
        resolution=run.resolution,
        checkpoints=run.checkpoints,
        outputs=run.outputs,
    ):
        raise ConfigurationError(str(fault))
    refuse_optimizer(run.training)
    refuse_memory(run)
    refuse_unprepared(run)
    if run.resolution % 8:
        raise ConfigurationError(f"resolution {run.resolution} is no multiple of 8; use 512")


def refuse_unprepared(run: TrainRun) -> None:
    """Raise `ConfigurationError` when pictures that a stage needs were not prepared for it."""
    training = run.training
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
