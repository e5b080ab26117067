"""What a source is, from headers and small texts only: family, variant, prediction type, parts.

Where shapes cannot tell, what the source declares counts, in this order: the caller's option,
scheduler config, marker tensors, ModelSpec, YAML beside the file. Stable Diffusion 2.1 at 512 and
768 pixels has the same shapes; where nothing declares which it is, it stays unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from kubebooth_trainer.convert import declared, recognition
from kubebooth_trainer.convert.declared import EPSILON, FLOW, V_PREDICTION
from kubebooth_trainer.convert.door import Opened
from kubebooth_trainer.convert.keys.families import FAMILIES, Layout
from kubebooth_trainer.convert.options import Options
from kubebooth_trainer.convert.recognition import Kind, Recognised
from kubebooth_trainer.convert.views import FLOATS, nbytes
from kubebooth_trainer.errors import ConfigurationError

_PREDICTIONS = {"Epsilon": EPSILON, "VPrediction": V_PREDICTION, "Flow": FLOW}


@dataclass(frozen=True)
class Detected:
    """What a source is, and why."""

    kind: Kind
    layout: Layout | None
    """Layout of names; None of a VAE that several families share."""
    variant: str | None
    prediction_type: str | None
    """`epsilon`, `v_prediction` or `flow`; None where it cannot be known, or means nothing."""
    dtype: str | None
    """Dtype of most bytes, as safetensors spells it."""
    ema: bool = False
    """Whether averaged weights are in it."""
    zero_terminal_snr: bool = False
    in_channels: int | None = None
    """Channels that the denoiser reads: 9 of inpainting models, 8 of those that edit."""
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """Folder of each component that is there → its prefix in a single file."""
    evidence: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """Family in the catalogue, or `unknown`."""
        return FAMILIES[self.layout].name if self.layout else "unknown"


def detect(opened: Opened, options: Options | None = None) -> Detected:
    """What `opened` is. Raises `DataError` for what no family knows, and `ConfigurationError` for
    options that contradict it."""
    options = options or Options(opened.form)
    found = recognition.recognise(opened, options.component)
    evidence = list(found.evidence)
    layout = _layout(opened, options, found, evidence)
    prediction = variant = None
    if layout is not None and found.kind != "Vae":
        prediction = _prediction(opened, options, found, layout, evidence)
    if layout is not None:
        variant = _variant(opened, options, found, layout, prediction)
    dtypes: Counter[str] = Counter()
    for tensor in opened.tensors.values():
        if tensor.dtype in FLOATS:
            dtypes[tensor.dtype] += nbytes(tensor)
    ema = any(name.startswith(("model_ema.", "kubebooth/model_ema.")) for name in opened.tensors)
    if ema:
        evidence.append("model_ema.*: averaged weights")
    return Detected(
        kind=found.kind,
        layout=layout,
        variant=variant,
        prediction_type=prediction,
        dtype=dtypes.most_common(1)[0][0] if dtypes else None,
        ema=ema,
        zero_terminal_snr=declared.zero_terminal_snr(opened),
        in_channels=found.in_channels,
        prefixes=found.prefixes,
        evidence=tuple(line[:256] for line in evidence[:16]),
    )


def ask_for_variant(found: Detected) -> ConfigurationError:
    """The error for a variant that nothing declares."""
    return ConfigurationError(
        "variant: 512 and 768 pixels of Stable Diffusion 2.1 have the same shapes, and neither a"
        " scheduler config, ModelSpec metadata nor a YAML beside the file says which it is; set"
        " variant to sd21-512 (epsilon) or sd21-768 (v-prediction)"
        if found.layout == "sd2"
        else "variant: a VAE's file does not say which family it scales its latents for; set"
        " variant to sd15, sd21-512, sd21-768 or sdxl",
        reason="VariantUnknown",
    )


def _layout(
    opened: Opened, options: Options, found: Recognised, evidence: list[str]
) -> Layout | None:
    """The layout that headers show, checked against the option, which alone decides for a VAE."""
    asked = None if options.variant == "Auto" else declared.layout_of_variant(options.variant)
    if found.layout is not None:
        shared = found.kind == "Vae" and found.layout in {"sd1", "sd2"} and asked in {"sd1", "sd2"}
        if asked is not None and asked != found.layout and not shared:
            raise ConfigurationError(
                f"variant: {options.variant} was asked for, but the source is"
                f" {FAMILIES[found.layout].title} ({'; '.join(found.evidence)[:200]}); name its own"
                " variant or leave it to Auto",
                reason="VariantMismatch",
            )
        return found.layout
    if asked is not None and asked != "flux":
        evidence.append(f"variant {options.variant} was asked for")
        return asked
    told = declared.spec_variant(opened)
    if told is not None:
        evidence.append(f"modelspec.architecture says {told}")
        return declared.layout_of_variant(told)
    return None


def _prediction(
    opened: Opened, options: Options, found: Recognised, layout: Layout, evidence: list[str]
) -> str | None:
    if layout == "flux":
        if options.prediction_type not in {"Auto", "Flow"}:
            raise ConfigurationError(
                f"predictionType: Flux.1 predicts flow, not {options.prediction_type}; leave it to"
                " Auto",
                reason="PredictionTypeMismatch",
            )
        return FLOW
    if options.prediction_type == "Flow":
        raise ConfigurationError(
            f"predictionType: {FAMILIES[layout].title} predicts epsilon or v, not Flow",
            reason="PredictionTypeMismatch",
        )
    if options.prediction_type != "Auto":
        evidence.append(f"prediction type {options.prediction_type} was asked for")
        return _PREDICTIONS[options.prediction_type]
    if options.variant in {"sd21-512", "sd21-768"}:
        evidence.append(f"variant {options.variant} was asked for")
        return V_PREDICTION if options.variant == "sd21-768" else EPSILON
    told = declared.prediction(opened)
    if told is not None:
        evidence.append(told[1])
        return told[0]
    variant = declared.spec_variant(opened)
    if layout == "sd2":
        if variant in {"sd21-512", "sd21-768"}:
            evidence.append(f"modelspec.architecture says {variant}")
            return V_PREDICTION if variant == "sd21-768" else EPSILON
        return None
    if found.kind in {"Lora", "ControlNet"}:
        return None
    evidence.append(f"nothing says otherwise: {FAMILIES[layout].title} predicts epsilon")
    return EPSILON


def _variant(
    opened: Opened, options: Options, found: Recognised, layout: Layout, prediction: str | None
) -> str | None:
    if options.variant != "Auto" and layout != "flux":
        return options.variant
    if layout == "sd2":
        if prediction is None or found.kind == "Vae":
            return declared.spec_variant(opened)
        return "sd21-768" if prediction == V_PREDICTION else "sd21-512"
    if layout != "flux":
        return {"sd1": "sd15", "sdxl": "sdxl"}[layout]
    variant = None
    if found.guidance is not None:
        variant = "flux-dev" if found.guidance else "flux-schnell"
    if options.variant == "Auto":
        return variant or declared.spec_variant(opened)
    if variant is not None and variant != options.variant:
        raise ConfigurationError(
            f"variant: {options.variant} was asked for, but the transformer is {variant} (it"
            f" {'embeds' if found.guidance else 'does not embed'} guidance)",
            reason="VariantMismatch",
        )
    return options.variant
