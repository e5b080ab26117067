"""What goes together and what does not, for every variant."""

from __future__ import annotations

from typing import Any

import pytest
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.combinations import faults
from kubebooth_api.v1alpha1.publish import Output
from kubebooth_api.v1alpha1.training import Checkpoints, Training


def told(
    variant: str,
    training: dict[str, Any],
    *,
    resolution: int | None = None,
    checkpoints: dict[str, Any] | None = None,
    outputs: tuple[Output, ...] = (),
) -> dict[str, str]:
    """Faults by field."""
    found = faults(
        variant=variant,
        training=Training.parse(training),
        resolution=resolution or BASE_MODELS[variant].native_resolution,
        checkpoints=Checkpoints.parse(checkpoints or {}),
        outputs=outputs,
    )
    return {fault.field: str(fault) for fault in found}


@pytest.mark.parametrize("variant", sorted(BASE_MODELS))
@pytest.mark.parametrize("method", ["Full", "LoRA"])
def test_the_defaults_of_every_variant_and_method_go_together(variant: str, method: str) -> None:
    assert told(variant, {"method": method}) == {}


@pytest.mark.parametrize(
    ("variant", "training", "field"),
    [
        ("flux-dev", {"mixedPrecision": "Fp16"}, "training.mixedPrecision"),
        ("sd15", {"zeroTerminalSnr": True}, "training.zeroTerminalSnr"),
        ("flux-dev", {"minSnrGamma": 5.0}, "training.minSnrGamma"),
        ("flux-dev", {"offsetNoise": 0.1}, "training.offsetNoise"),
        ("sdxl", {"timestepSampling": "FluxShift"}, "training.timestepSampling"),
        ("sd15", {"guidance": 3.5}, "training.guidance"),
        ("sd15", {"ema": {}, "denoiser": {"steps": 0}}, "training.ema"),
        (
            "sd15",
            {"textEncoder": {"mode": "Joint"}, "denoiser": {"steps": 0}},
            "training.textEncoder.mode",
        ),
        ("sd15", {"textEncoder": {"steps": 0}, "denoiser": {"steps": 0}}, "training"),
        ("sd15", {"validation": {}, "denoiser": {"steps": 0}}, "training.validation"),
        ("sd15", {"lora": {}}, "training.lora"),
        ("flux-dev", {"memory": {"quantizedBase": "Nf4"}}, "training.memory.quantizedBase"),
        ("sd15", {"captionKeepTokens": 1}, "training.captionKeepTokens"),
        (
            "flux-dev",
            {"method": "LoRA", "lora": {"targets": ["Convolution"]}},
            "training.lora.targets",
        ),
        ("sd15", {"method": "LoRA", "lora": {"targets": ["Convolution"]}}, "training.lora.targets"),
        ("flux-dev", {"method": "LoRA", "lora": {"dora": True}}, "training.lora.dora"),
        (
            "sdxl",
            {"method": "LoRA", "lora": {"dora": True}, "memory": {"quantizedBase": "Int8"}},
            "training.lora.dora",
        ),
        ("sd15", {"optimizer": "Prodigy", "textEncoder": {"mode": "Joint"}}, "training.optimizer"),
        ("sd15", {"textEncoder": {"resolution": 768}}, "training.textEncoder.resolution"),
    ],
)
def test_what_does_not_go_together_is_named_with_a_cure(
    variant: str, training: dict[str, Any], field: str
) -> None:
    found = told(variant, training)
    assert list(found) == [field]
    assert len(found[field]) > len(field) + 20


def test_what_is_right_for_one_variant_is_right_there() -> None:
    assert told("sd21-768", {"zeroTerminalSnr": True, "minSnrGamma": 5.0}) == {}
    assert told("flux-dev", {"timestepSampling": "FluxShift", "guidance": 3.5}) == {}
    lora = {"method": "LoRA", "memory": {"quantizedBase": "Nf4"}}
    assert told("flux-dev", lora) == {}


def test_the_text_encoder_never_trains_on_enlarged_pictures() -> None:
    asked = {"textEncoder": {"resolution": 512}}
    found = told("sd15", asked, resolution=448)
    assert "would be enlarged" in found["training.textEncoder.resolution"]
    assert told("sd15", asked, resolution=512) == {}


def test_a_resolution_above_the_native_one_must_be_asked_for_and_has_a_limit() -> None:
    row = BASE_MODELS["sd15"]
    assert "training.resolution" in told("sd15", {}, resolution=row.native_resolution + 64)
    allowed = {"allowNonNativeResolution": True}
    assert told("sd15", allowed, resolution=row.native_resolution + 64) == {}
    assert "training.resolution" in told("sd15", allowed, resolution=row.greatest_resolution + 64)


def test_the_best_checkpoint_needs_a_measure() -> None:
    assert "checkpoints.keepBest" in told("sd15", {}, checkpoints={"keepBest": 1})
    assert told("sd15", {"validation": {}}, checkpoints={"keepBest": 1}) == {}


def test_outputs_that_cannot_be_are_refused() -> None:
    ckpt = (Output(name="a", format="Ckpt"),)
    assert "outputs" in told("sd15", {"method": "LoRA"}, outputs=ckpt)
    assert told("sd15", {}, outputs=ckpt) == {}
    many = tuple(Output(name=f"a{number}") for number in range(5))
    assert "outputs" in told("sd15", {}, outputs=many)
