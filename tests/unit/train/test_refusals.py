from typing import Any

import pytest
from kubebooth_api.artifacts import Artifact
from kubebooth_api.runs import SessionIdentity, StoreLocation, TrainRun
from kubebooth_api.v1alpha1.session import Output
from kubebooth_api.v1alpha1.training import Checkpoints, Training
from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.train.device import place
from kubebooth_trainer.train.refusals import FAMILIES, family_of, refuse_unsupported

DIGEST = "sha256:" + "0" * 64
THING = Artifact(name="x", uri="file:///x", digest=DIGEST, size=0)


def run_of(training: dict[str, Any], **more: Any) -> TrainRun:
    return TrainRun(
        session=SessionIdentity(namespace="default", name="one"),
        store=StoreLocation(uri="file:///store"),
        digest=DIGEST,
        variant=more.pop("variant", "sd15"),
        base_model=THING,
        dataset=THING,
        resolution=more.pop("resolution", 64),
        training=Training.parse(training),
        **more,
    )


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"method": "LoRA", "lora": {"targets": ["Convolution"]}},
            r"training\.lora\.targets Convolution: the text encoder",
        ),
        (
            {"optimizer": "Prodigy", "textEncoder": {"mode": "Joint"}},
            r"training\.optimizer Prodigy has one learning rate.*textEncoder and denoiser alike",
        ),
        ({"conceptStage": {"sources": [{"store": {"key": "x"}}]}}, r"training\.conceptStage"),
        ({"validation": {}, "denoiser": {"steps": 0}}, r"training\.validation"),
        ({"guidance": 3.5}, r"training\.guidance"),
        ({"timestepSampling": "FluxShift"}, r"training\.timestepSampling FluxShift"),
        ({"textEncoder": {"resolution": 128}}, r"training\.textEncoder\.resolution"),
        ({"memory": {"quantizedBase": "Int8"}}, r"training\.memory\.quantizedBase"),
        (
            {"priorPreservation": {"classPrompt": "x", "sources": [{"store": {"key": "x"}}]}},
            r"training\.priorPreservation\.sources",
        ),
        ({"ema": {}, "denoiser": {"steps": 0}}, r"training\.ema"),
        (
            {"textEncoder": {"mode": "Joint"}, "denoiser": {"steps": 0}},
            r"training\.textEncoder\.mode Joint",
        ),
        ({"textEncoder": {"steps": 0}, "denoiser": {"steps": 0}}, "nothing to train"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_field_with_a_cure(training, said: str):
    with pytest.raises(ConfigurationError, match=said):
        refuse_unsupported(run_of(training))


def test_the_defaults_are_not_refused():
    run = run_of({})
    refuse_unsupported(run)
    assert callable(family_of(run))


def test_a_family_that_is_not_here_is_refused_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(FAMILIES, "flux")
    with pytest.raises(ConfigurationError, match=r"variant flux-dev .* sd15"):
        family_of(run_of({}, variant="flux-dev"))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"minSnrGamma": 5.0}, r"training\.minSnrGamma .* remove it for flux-dev"),
        ({"offsetNoise": 0.1}, r"training\.offsetNoise .* remove it for flux-dev"),
        ({"mixedPrecision": "Fp16"}, r"training\.mixedPrecision Fp16"),
        ({"zeroTerminalSnr": True}, r"training\.zeroTerminalSnr"),
    ],
)
def test_what_flow_matching_does_not_know_is_refused(training: dict[str, Any], said: str):
    with pytest.raises(ConfigurationError, match=said):
        refuse_unsupported(run_of(training, variant="flux-dev"))


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(
        ConfigurationError, match=r"training\.compile needs a C\+\+ compiler"
    ) as told:
        refuse_unsupported(run_of({"compile": True}))
    assert told.value.reason == "LibraryMissing"


@pytest.mark.parametrize(
    ("form", "variant", "method", "said"),
    [
        ("Nf4", "sdxl", "LoRA", "is for Flux"),
        ("Fp8", "flux-dev", "LoRA", "use Int8 or Nf4"),
    ],
)
def test_a_quantized_base_that_cannot_be_made_is_refused(
    form: str, variant: str, method: str, said: str
):
    run = run_of({"method": method, "memory": {"quantizedBase": form}}, variant=variant)
    with pytest.raises(
        ConfigurationError, match=rf"training\.memory\.quantizedBase {form} .*{said}"
    ):
        refuse_unsupported(run)


def test_a_quantized_base_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch):
    run = run_of({"method": "LoRA", "memory": {"quantizedBase": "Nf4"}}, variant="flux-dev")
    refuse_unsupported(run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs the package bitsandbytes"):
        refuse_unsupported(run)


def test_flux_takes_its_guidance_and_its_sampling():
    run = run_of({"guidance": 3.5, "timestepSampling": "FluxShift"}, variant="flux-dev")
    refuse_unsupported(run)
    assert callable(family_of(run))


def test_more_artifacts_than_a_report_holds_are_refused():
    outputs = tuple(Output(name=f"out-{number}") for number in range(5))
    with pytest.raises(ConfigurationError, match="outputs asks for 5"):
        refuse_unsupported(run_of({}, outputs=outputs))


def test_checkpoints_by_validation_loss_are_refused():
    with pytest.raises(ConfigurationError, match=r"checkpoints\.keepBest"):
        refuse_unsupported(run_of({}, checkpoints=Checkpoints(keep_best=1)))


def test_fp16_on_a_cpu_is_refused_with_a_cure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=r"Fp16 needs an accelerator.*Auto or No"):
        place(Training.parse({"mixedPrecision": "Fp16"}))
    assert place(Training.parse({})).autocast is None
