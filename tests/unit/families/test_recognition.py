"""A base model of another variant is refused with the evidence, before torch is needed."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families import recognition
from kubebooth_trainer.families.files import read_json
from kubebooth_trainer.train.refusals import refuse_other_base, refuse_unsupported

from tests.tiny.models import BUILDERS, write_model
from tests.unit.train.test_refusals import run_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {variant: write_model(root / variant, variant) for variant in BUILDERS}


@pytest.mark.parametrize("variant", BUILDERS)
def test_every_variant_is_known_for_what_it_is(models: dict[str, Path], variant: str):
    recognition.check(variant, partial(read_json, models[variant]))
    assert set(BUILDERS) == set(BASE_MODELS)


@pytest.mark.parametrize(
    ("asked", "given", "says"),
    [
        ("sd15", "sdxl", "model_index.json says 'StableDiffusionXLPipeline'"),
        ("sd15", "flux-dev", "model_index.json says 'FluxPipeline'"),
        ("sd15", "sd21-768", "predicts 'v_prediction', but sd15 is epsilon"),
        ("sd21-768", "sd21-512", "predicts 'epsilon', but sd21-768 is v_prediction"),
        ("sdxl", "sd15", "model_index.json says 'StableDiffusionPipeline'"),
        ("flux-dev", "sdxl", "model_index.json says 'StableDiffusionXLPipeline'"),
    ],
)
def test_another_variant_is_refused_with_the_evidence(
    models: dict[str, Path], asked: str, given: str, says: str
):
    with pytest.raises(DataError, match=says) as told:
        refuse_other_base(run_of({}, variant=asked), models[given])
    assert told.value.reason == "VariantMismatch"
    assert "baseModel.variant" in told.value.message


@pytest.mark.parametrize(
    ("variant", "path", "changes", "says"),
    [
        ("sd15", "unet/config.json", {"in_channels": 9}, "an inpainting model"),
        ("sdxl", "unet/config.json", {"addition_embed_type": None}, "not 'text_time'"),
        ("sdxl", "unet/config.json", {"cross_attention_dim": 48}, "or to an SDXL refiner"),
        ("sdxl", "text_encoder_2/config.json", {"hidden_size": "8"}, "different models"),
        ("sdxl", "scheduler/scheduler_config.json", {"prediction_type": "v_prediction"},
         "sdxl is epsilon"),
        ("sdxl", "model_index.json", {"text_encoder_2": None}, "text_encoder_2 nothing"),
        ("flux-dev", "transformer/config.json", {"guidance_embeds": False}, "schnell"),
        ("flux-dev", "transformer/config.json", {"in_channels": 16}, "in_channels 16, not 64"),
        ("flux-dev", "text_encoder_2/config.json", {"d_model": 4}, "different models"),
        ("flux-dev", "vae/config.json", {"latent_channels": 4}, "latent_channels 4, not 16"),
        ("flux-dev", "scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"},
         "flux-dev is flow"),
    ],
)  # fmt: skip
def test_what_gives_a_strange_model_away_is_named(
    models: dict[str, Path], variant: str, path: str, changes: dict[str, Any], says: str
):
    def read(name: str) -> dict[str, Any]:
        return {**read_json(models[variant], name), **(changes if name == path else {})}

    with pytest.raises(recognition.Unfit, match=says):
        recognition.check(variant, read)


@pytest.mark.parametrize(
    ("variant", "width"), [("sd15", 1024), ("sd21-512", 768), ("sd21-768", 2048)]
)
def test_published_text_widths_tell_the_variants_apart(
    models: dict[str, Path], variant: str, width: int
):
    changed = {
        "unet/config.json": {"cross_attention_dim": width},
        "text_encoder/config.json": {"hidden_size": width},
    }

    def read(name: str) -> dict[str, Any]:
        return {**read_json(models[variant], name), **changed.get(name, {})}

    wanted = BASE_MODELS[variant].text_width
    with pytest.raises(recognition.OtherVariant, match=f"{width} is .* has {wanted}"):
        recognition.check(variant, read)


@pytest.mark.parametrize(
    ("variant", "training", "resolution", "says"),
    [
        ("sdxl", {"zeroTerminalSnr": True}, 64, r"zeroTerminalSnr .* sdxl predicts epsilon"),
        ("flux-dev", {"mixedPrecision": "Fp16"}, 64, r"Fp16 does not do for flux-dev; .* Bf16"),
        ("sd15", {}, 2048, r"training\.resolution 2048 .* sd15 .* use 512, at most 1024"),
    ],
)
def test_what_a_variant_cannot_do_is_refused_before_anything_is_fetched(
    variant: str, training: dict[str, Any], resolution: int, says: str
):
    with pytest.raises(ConfigurationError, match=says):
        refuse_unsupported(run_of(training, variant=variant, resolution=resolution))


def test_recognising_a_model_loads_no_torch():
    code = (
        "import sys; import kubebooth_trainer.families.recognition;"
        " print(json.dumps(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import json;" + code], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
