"""From a source and the options to a plan: every tensor placed, before a byte is written.

It reads headers and small texts only; of low-rank updates also a few values. It must not write.
"""

from __future__ import annotations

from kubebooth_trainer.convert import changes, folders, lora, singles
from kubebooth_trainer.convert.detection import Detected, ask_for_variant, detect
from kubebooth_trainer.convert.door import Opened, Plan
from kubebooth_trainer.convert.models import Model, load
from kubebooth_trainer.convert.options import Options
from kubebooth_trainer.convert.tensors import dtype_for
from kubebooth_trainer.errors import ConfigurationError


def plan(opened: Opened, options: Options) -> Plan:
    """All that a conversion will write.

    Raises `DataError` for a source that cannot be converted whole and `ConfigurationError` for
    options that do not fit it or that only the caller can decide.
    """
    found = detect(opened, options)
    if found.kind == "Lora":
        return lora.plan(opened, options, found)
    _check(found, options)
    loaded = load(opened, found)
    model, dropped = changes.applied(loaded, opened, options, found)
    evidence = found.evidence + _warnings(model, options, found)
    if options.form == "Diffusers":
        files, left = folders.files(model, opened, options, found)
        evidence += folders.remarks(model, found, files)
    else:
        files, left = singles.files(model, opened, options, found)
    return Plan(
        family=found.family,
        variant=found.variant or "",
        prediction_type=found.prediction_type or "",
        evidence=evidence,
        files=files,
        dropped={**loaded.unread, **dropped, **left},
    )


def _warnings(model: Model, options: Options, found: Detected) -> tuple[str, ...]:
    """What will surprise the user although the conversion is right."""
    vae = next((c for c in model.components.values() if c.component.role == "Vae"), None)
    if found.layout != "sdxl" or vae is None:
        return ()
    narrowed = any(
        dtype_for(options, "Vae", tensor.dtype) == "F16" != tensor.dtype
        for tensor in vae.parts.values()
    )
    if not narrowed:
        return ()
    return ("the VAE of SDXL overflows in fp16, whose pictures are black; keep its precision",)


def _check(found: Detected, options: Options) -> None:
    """Refuse what could only be guessed, and options that would do nothing."""
    if found.layout == "sd2" and found.prediction_type is None and found.kind == "Pipeline":
        raise ask_for_variant(found)
    if found.layout is None and options.form == "Diffusers" and options.configs_from is None:
        raise ask_for_variant(found)
    if options.ema == "Use" and not found.ema:
        raise ConfigurationError(
            "ema: Use was asked for, but the source has no averaged weights (model_ema.*); set it"
            " to Drop",
            reason="NoAveragedWeights",
        )
    if found.kind != "Pipeline" and (options.vae is not None or options.merge_loras):
        raise ConfigurationError(
            f"vae and mergeLoras change a whole pipeline, and the source is a {found.kind}; leave"
            " them out",
            reason="ComponentMismatch",
        )
