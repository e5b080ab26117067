"""Which conversions this version makes; pure, knows only the spec."""

from __future__ import annotations

from kubebooth_api.v1alpha1.conversion import ModelConversionSpec

from kubebooth_operator.doors import Stalled


def refuse(spec: ModelConversionSpec) -> None:
    """Raise `Stalled` that names the first field that cannot be followed, and the cure."""
    _refuse_runtime(spec)
    whole = spec.component in ("Auto", "Pipeline")
    for field, asked in (("vae", spec.vae is not None), ("mergeLoras", bool(spec.merge_loras))):
        if asked and not whole:
            raise _wrong(
                field, f"only a whole pipeline has them, and component is {spec.component}", field
            )
    if spec.component == "Lora" and spec.target.format == "Ckpt":
        raise Stalled(
            "InvalidCombination",
            "spec.target.format: a LoRA has no CKPT that UIs read; use Safetensors or Diffusers",
        )


def _refuse_runtime(spec: ModelConversionSpec) -> None:
    if spec.runtime is None:
        return
    asked = spec.runtime
    if asked.launcher != "Job" or asked.nodes != 1:
        raise Stalled(
            "NotSupported",
            "spec.runtime.launcher: a conversion is one pod; set launcher: Job and nodes: 1",
        )
    if asked.resources.gpu > 1 or asked.device_claims:
        raise Stalled(
            "NotSupported",
            "spec.runtime.resources.gpu: a conversion uses no accelerator; set gpu: 0 and remove"
            " deviceClaims",
        )


def _wrong(field: str, why: str, what: str) -> Stalled:
    return Stalled("InvalidCombination", f"spec.{field}: {why}; remove {what}")
