"""Every tensor is placed or the plan fails, and the error names it and the cure."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from kubebooth_trainer.convert.door import Copy, Opened, Plan
from kubebooth_trainer.convert.keys import networks
from kubebooth_trainer.convert.options import ComponentPrecision, Options
from kubebooth_trainer.convert.planning import plan
from kubebooth_trainer.errors import ConfigurationError, DataError, WorkerError

from tests.tiny.conversion import header, headers, single_names
from tests.unit.convert_maps.test_detection import (
    DENOISER,
    UNET1,
    VAE,
    flux,
    sd1,
    sd2,
    sd2_folder,
    sdxl,
)

EPSILON: dict[str, Any] = {"prediction_type": "epsilon"}


def texts_of(made: Plan) -> dict[str, bytes]:
    return {file.path: file.text for file in made.files if file.form == "Text"}


def names_of(made: Plan, path: str) -> set[str]:
    return {t.name for file in made.files if file.path == path for t in file.tensors}


@pytest.mark.parametrize("form", ["Diffusers", "Safetensors", "Ckpt"])
def test_an_unknown_tensor_fails_the_plan(form: Any) -> None:
    shapes = {**sd1(), f"{DENOISER}input_blocks.1.0.new_layer.weight": (3,)}
    with pytest.raises(DataError, match=r"input_blocks\.1\.0\.new_layer\.weight") as error:
        plan(headers(shapes), Options(form))
    assert error.value.reason == "UnknownTensor"


def test_a_missing_tensor_fails_the_plan() -> None:
    shapes = dict(sd1())
    del shapes[f"{DENOISER}out.2.bias"]
    with pytest.raises(DataError, match=r"model\.diffusion_model lacks out\.2\.bias") as error:
        plan(headers(shapes), Options("Diffusers"))
    assert error.value.reason == "MissingTensor"


def test_a_tensor_of_another_shape_fails_the_plan() -> None:
    shapes = {**sd1(), f"{DENOISER}middle_block.0.in_layers.2.weight": (1280, 640, 3, 3)}
    with pytest.raises(
        DataError, match=r"middle_block\.0\.in_layers\.2\.weight has shape"
    ) as error:
        plan(headers(shapes), Options("Diffusers"))
    assert error.value.reason == "WrongShape"


def _folder(**changes: Any) -> Opened:
    opened = sd2_folder(EPSILON)
    tensors, texts = dict(opened.tensors), dict(opened.texts)
    for name in changes.get("without", ()):
        del tensors[name]
    for name in changes.get("more", ()):
        tensors[name] = header(name, (3,))
    for path in changes.get("no_texts", ()):
        del texts[path]
    for path, text in changes.get("texts", {}).items():
        texts[path] = text if isinstance(text, bytes) else json.dumps(text).encode()
    return Opened("Diffusers", tensors, texts=texts)


@pytest.mark.parametrize(
    ("changes", "said", "reason"),
    [
        ({"without": ["unet/conv_in.bias"]}, "unet lacks conv_in.bias", "MissingTensor"),
        ({"more": ["vae/extra.weight"]}, "vae holds vae/extra.weight", "UnknownTensor"),
        ({"no_texts": ["vae/config.json"]}, "vae/config.json is missing", "NoConfig"),
        ({"no_texts": ["model_index.json"]}, "neither model_index.json", "NoModel"),
        ({"texts": {"unet/config.json": b"{"}}, "unet/config.json is not JSON", "BadConfig"),
        ({"texts": {"unet/config.json": b"[]"}}, "no JSON object", "BadConfig"),
        ({"texts": {"unet/config.json": b"[" * 9999}}, "not JSON", "BadConfig"),
        (
            {"texts": {"vae/config.json": {**VAE, "layers_per_block": 10**9}}},
            "layers_per_block",
            "BadConfig",
        ),
        (
            {"texts": {"vae/config.json": {**VAE, "block_out_channels": [8] * 99}}},
            "block_out_channels",
            "BadConfig",
        ),
        (
            {"texts": {"vae/config.json": {**VAE, "layers_per_block": -1}}},
            "layers_per_block",
            "BadConfig",
        ),
        (
            {"texts": {"vae/config.json": {**VAE, "latent_channels": True}}},
            "latent_channels",
            "BadConfig",
        ),
        (
            {"texts": {"vae/config.json": {**VAE, "use_quant_conv": "no"}}},
            "use_quant_conv",
            "BadConfig",
        ),
        (
            {"texts": {"vae/config.json": {**VAE, "latent_channels": 16}}},
            "has shape",
            "WrongShape",
        ),
        (
            {"texts": {"unet/config.json": {**UNET1, "down_block_types": ["Unknown"] * 4}}},
            "down_block_types",
            "BadConfig",
        ),
        (
            {"texts": {"model_index.json": {"_class_name": "PixArtAlphaPipeline"}}},
            "no family that is converted",
            "UnknownFamily",
        ),
        (
            {"texts": {"scheduler/scheduler_config.json": {"prediction_type": "sample"}}},
            "prediction_type 'sample'",
            "UnknownPredictionType",
        ),
    ],
)
def test_a_bad_layout_is_refused_by_the_name_of_what_is_bad(
    changes: dict[str, Any], said: str, reason: str
) -> None:
    with pytest.raises(DataError) as error:
        plan(_folder(**changes), Options("Safetensors"))
    assert said in error.value.message
    assert error.value.reason == reason


def test_names_that_promise_endless_layers_are_refused_at_once() -> None:
    shapes = {**sd1(), f"{DENOISER}input_blocks.999999.0.op.weight": (3,)}
    with pytest.raises(WorkerError, match="layers"):
        plan(headers(shapes), Options("Diffusers"))


def test_the_layout_of_a_published_single_file_is_complete() -> None:
    made = plan(headers(sd1()), Options("Diffusers"))
    assert {file.path for file in made.files} == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "kubebooth/source.json",
        *(f"tokenizer/{n}" for n in ("merges.txt", "vocab.json", "special_tokens_map.json",
                                     "tokenizer_config.json")),
        *(f"{c}/config.json" for c in ("unet", "vae", "text_encoder")),
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }  # fmt: skip
    vocabulary = json.loads(texts_of(made)["tokenizer/vocab.json"])
    assert len(vocabulary) == 49408
    assert vocabulary["<|endoftext|>"] == 49407
    assert vocabulary["dog</w>"] == 1929
    assert made.dropped == {}


def test_published_sizes_need_no_configs() -> None:
    texts = texts_of(plan(headers(sdxl()), Options("Diffusers")))
    unet = json.loads(texts["unet/config.json"])
    assert unet["attention_head_dim"] == [5, 10, 20]
    assert unet["transformer_layers_per_block"] == [1, 2, 10]
    assert unet["addition_time_embed_dim"] == 256
    assert json.loads(texts["text_encoder_2/config.json"])["num_attention_heads"] == 20
    index = json.loads(texts["model_index.json"])
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["text_encoder_2"] == ["transformers", "CLIPTextModelWithProjection"]
    assert json.loads(texts["tokenizer_2/tokenizer_config.json"])["pad_token"] == "!"


def test_a_denoiser_alone_becomes_a_pipeline_with_gaps() -> None:
    made = plan(headers(flux(guidance=False)), Options("Diffusers"))
    texts = texts_of(made)
    index = json.loads(texts["model_index.json"])
    assert index["transformer"] == ["diffusers", "FluxTransformer2DModel"]
    assert index["vae"] == index["text_encoder"] == [None, None]
    scheduler = json.loads(texts["scheduler/scheduler_config.json"])
    assert scheduler["use_dynamic_shifting"] is False, "schnell shifts nothing"
    back = Opened("Diffusers", {
        f"transformer/{n}": header(n, s) for n, s in _shapes(made, "transformer/").items()
    }, texts=texts)  # fmt: skip
    again = plan(back, Options("Safetensors"))
    assert names_of(again, "model.safetensors") == set(flux(guidance=False)), "bare as it came"


def _shapes(made: Plan, folder: str) -> dict[str, tuple[int, ...]]:
    return {t.name: t.shape for f in made.files if f.path.startswith(folder) for t in f.tensors}


def test_an_inpainting_model_stays_one() -> None:
    texts = texts_of(plan(headers(sd1(in_channels=9)), Options("Diffusers")))
    assert json.loads(texts["unet/config.json"])["in_channels"] == 9
    name = json.loads(texts["model_index.json"])["_class_name"]
    assert name == "StableDiffusionInpaintPipeline"


def test_v_prediction_is_told_in_all_three_dialects() -> None:
    single = plan(sd2_folder({"prediction_type": "v_prediction"}), Options("Safetensors"))
    assert single.files[0].metadata["modelspec.prediction_type"] == "v"
    assert single.files[0].metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert single.files[0].metadata["modelspec.resolution"] == "768x768"
    config = yaml.safe_load(texts_of(single)["model.yaml"])["model"]["params"]
    assert config["parameterization"] == "v"
    assert config["unet_config"]["params"]["context_dim"] == 1024
    assert config["cond_stage_config"]["params"]["layer"] == "penultimate"
    marked = plan(headers({**sdxl(), "v_pred": (0,), "ztsnr": (0,)}), Options("Diffusers"))
    scheduler = json.loads(texts_of(marked)["scheduler/scheduler_config.json"])
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"] is True
    assert scheduler["timestep_spacing"] == "trailing"
    asked = plan(headers(sdxl()), Options("Ckpt", prediction_type="VPrediction"))
    assert "v_pred" in names_of(asked, "model.ckpt")
    plain = plan(headers({**sdxl(), "v_pred": (0,)}), Options("Ckpt", prediction_type="Epsilon"))
    assert "v_pred" not in names_of(plain, "model.ckpt")
    assert "marker" in plain.dropped["v_pred"]


def test_a_vae_that_will_overflow_is_told_of() -> None:
    def overflows(**options: Any) -> bool:
        opened = headers(sdxl())
        wide = Opened("Safetensors", {n: header(n, t.shape, "F32") for n, t in
                                      opened.tensors.items()})  # fmt: skip
        made = plan(wide, Options("Safetensors", **options))
        return any("overflows" in line for line in made.evidence)

    assert overflows(precision="Fp16")
    assert not overflows(precision="Fp16", component_precision=ComponentPrecision(vae="Fp32"))
    assert not overflows(precision="Bf16")


def test_epsilon_of_stable_diffusion_2_is_told_to_older_loaders() -> None:
    made = plan(sd2_folder(EPSILON), Options("Ckpt", name="mine"))
    config = yaml.safe_load(texts_of(made)["mine.yaml"])["model"]["params"]
    assert config["parameterization"] == "eps"
    assert texts_of(plan(headers(sd1()), Options("Ckpt"))) == {}


def test_metadata_are_kept_added_and_never_stale() -> None:
    source = headers(sd1(), metadata={
        "modelspec.author": "me", "modelspec.hash_sha256": "0x00", "training": "long",
    })  # fmt: skip
    made = plan(source, Options("Safetensors", name="mine", metadata={"title": "Dog", "a.b": "c"}))
    told = made.files[0].metadata
    assert told["modelspec.sai_model_spec"] == "1.0.1"
    assert told["modelspec.architecture"] == "stable-diffusion-v1"
    assert (told["modelspec.title"], told["modelspec.author"]) == ("Dog", "me")
    assert (told["training"], told["a.b"]) == ("long", "c")
    assert "modelspec.hash_sha256" not in told
    with pytest.raises(ConfigurationError, match="no name of a ModelSpec field"):
        plan(source, Options("Safetensors", metadata={"bad name": "x"}))


def test_a_flux_layout_says_that_it_lacks_a_tokenizer() -> None:
    t5 = {"d_model": 64, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    shapes = {
        **flux(guidance=True, prefix=DENOISER),
        **single_names(networks.T5, t5, "text_encoders.t5xxl.transformer."),
    }
    made = plan(headers(shapes), Options("Diffusers"))
    assert any("tokenizer_2 is left out" in line for line in made.evidence)
    index = json.loads(texts_of(made)["model_index.json"])
    assert index["text_encoder_2"] == ["transformers", "T5EncoderModel"]
    assert index["tokenizer_2"] == [None, None]
    given = Opened("Diffusers", {}, texts={"tokenizer_2/tokenizer.json": b"{}"})
    made = plan(headers(shapes), Options("Diffusers", configs_from=given))
    assert not any("left out" in line for line in made.evidence)
    assert texts_of(made)["tokenizer_2/tokenizer.json"] == b"{}"


def test_text_encoders_without_prefix_are_read_and_written_with_it() -> None:
    prefix = "cond_stage_model.transformer."
    shapes = {name.replace(f"{prefix}text_model.", prefix): shape for name, shape in sd1().items()}
    made = plan(headers(shapes), Options("Safetensors"))
    assert names_of(made, "model.safetensors") == set(sd1())
    folder = _folder()
    bare = Opened("Diffusers", {
        name.replace("text_encoder/text_model.", "text_encoder/"): tensor
        for name, tensor in folder.tensors.items()
    }, texts=folder.texts)  # fmt: skip
    first, second = (plan(opened, Options("Ckpt")) for opened in (folder, bare))
    assert names_of(first, "model.ckpt") == names_of(second, "model.ckpt")


def test_old_names_of_attention_in_a_vae_are_read() -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    folder = _folder()
    tensors = {}
    for name, tensor in folder.tensors.items():
        for new, former in old.items():
            if ".mid_block.attentions.0." in name and name.startswith("vae/"):
                name = name.replace(f".{new}.", f".{former}.")
        tensors[name] = tensor
    assert tensors.keys() != folder.tensors.keys()
    made = plan(Opened("Diffusers", tensors, texts=folder.texts), Options("Safetensors"))
    assert names_of(made, "model.safetensors") == names_of(
        plan(folder, Options("Safetensors")), "model.safetensors"
    )


def test_no_conversion_that_keeps_precision_computes_but_the_one_transpose() -> None:
    for opened, computed in ((headers(sd1()), set()), (_folder(), set()),
                             (headers(flux(guidance=True)), set()),
                             (headers(sdxl()), {"text_projection.weight"})):  # fmt: skip
        for form in ("Diffusers", "Safetensors"):
            made = plan(opened, Options(form))  # type: ignore[arg-type]
            found = {t.name for f in made.files for t in f.tensors if not isinstance(t.data, Copy)}
            assert found == (computed if form == "Diffusers" else set())


def test_every_source_tensor_is_written_or_named_as_dropped() -> None:
    shapes = {**sd2(), "model_ema.decay": (), "alphas_cumprod": (1000,),
              "cond_stage_model.model.logit_scale": ()}  # fmt: skip
    for form in ("Diffusers", "Safetensors"):
        made = plan(headers(shapes), Options(form, variant="sd21-768"))  # type: ignore[arg-type]
        used = {s for f in made.files for t in f.tensors for s in t.sources}
        assert used | set(made.dropped) == set(shapes)
        assert set(made.dropped) == {"model_ema.decay"}


def test_components_that_single_files_lack_are_dropped_with_a_reason() -> None:
    opened = _folder(more=["safety_checker/vision.weight"])
    made = plan(opened, Options("Safetensors"))
    assert set(made.dropped) == {"safety_checker/vision.weight"}
    kept = plan(opened, Options("Diffusers"))
    assert kept.dropped == {}
    assert any(file.path.startswith("safety_checker/") for file in kept.files)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ema": "Use"}, "NoAveragedWeights"),
        ({"vae": headers(flux(guidance=True))}, "WrongFamily"),
        ({"vae": headers({"lora_unet_a.lora_down.weight": (1, 2)})}, "ComponentMismatch"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        plan(headers(sd1()), Options("Safetensors", **options))
    assert error.value.reason == reason


def test_averaged_weights_that_are_incomplete_are_refused() -> None:
    shapes = {**sd1(), "model_ema.diffusion_modelout2bias": (4,)}
    with pytest.raises(DataError, match="averaged weights lack") as error:
        plan(headers(shapes), Options("Safetensors", ema="Use"))
    assert error.value.reason == "MissingTensor"


def test_joined_tensors_of_different_precision_are_refused_with_the_cure() -> None:
    folder = _folder()
    name = "text_encoder/text_model.encoder.layers.0.self_attn.q_proj.weight"
    tensors = {**folder.tensors, name: header(name, (1024, 1024), "F32")}
    mixed = Opened("Diffusers", tensors, texts=folder.texts)
    with pytest.raises(DataError, match="set a precision") as error:
        plan(mixed, Options("Safetensors"))
    assert error.value.reason == "UnevenTensors"
    assert plan(mixed, Options("Safetensors", precision="Fp16")).files
