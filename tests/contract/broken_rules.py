"""Manifests that each break one rule, with the message that the rule must answer."""

from __future__ import annotations

from kubebooth_api.crd.definition import NAME_RULE
from kubebooth_api.v1alpha1.common import NO_COMMIT
from kubebooth_api.v1alpha1.webui import FORBIDDEN_ARGUMENTS

from tests.contract.refusal import Refusal, bad, bad_conversion, bad_ui

STORE = {"store": {"key": "a"}}
BRANCH = {"repo": "a/b", "revision": "main"}
MODEL = {"endpoint": "https://vision.example.com/v1", "model": "m"}
TOO_LARGE = (
    "training.resolution is above the native resolution of baseModel.variant (sd15 and sd21-512:"
    " 512, sd21-768: 768, sdxl and flux-dev: 1024); lower it, choose another variant or set"
    " training.allowNonNativeResolution: true"
)
ONE_MODEL_SOURCE = "set exactly one of store, huggingFace, url, session in a model source"
ONE_IMAGE_SOURCE = (
    "set exactly one of store, archive, url, persistentVolumeClaim, configMap, notebookSession in"
    " each entry of concepts[].sources"
)
ONE_UI_SOURCE = (
    "set exactly one of session, conversion, catalog, store, huggingFace, url in each entry of"
    " models[]"
)
UPLOADS = (
    "uploaded pictures belong to a session of one concept; with several concepts give each its"
    " concepts[].sources"
)
NAME_MODEL = "captions.mode asks a vision-language model: name it in captions.model"
WARMUP = "warmupSteps must not exceed the steps of its stage"
NO_AUTH = (
    "an exposed UI needs authentication: set auth.mode to Basic, Oidc or ForwardAuth, or"
    " expose.mode to None"
)
FORBIDDEN = (
    "extraArgs must not contain " + ", ".join(FORBIDDEN_ARGUMENTS) + ": they open the pod to"
    " strangers"
)
NO_FLUX = "automatic1111 cannot run Flux models; set engine to comfyui or diffusers"
EXPOSED = {"mode": "Ingress", "host": "a.example.com"}

RULES = (
    Refusal("a name of 64", "DreamboothSession", {}, NAME_RULE.message, object_name="a" * 64),
    bad("sd15 at 768", {"training.resolution": 768}, TOO_LARGE, "spec.training.resolution"),
    bad(
        "sd21-512 at 576", {"baseModel.variant": "sd21-512", "training.resolution": 576}, TOO_LARGE
    ),
    bad(
        "sd21-768 at 832", {"baseModel.variant": "sd21-768", "training.resolution": 832}, TOO_LARGE
    ),
    bad("sdxl at 1088", {"baseModel.variant": "sdxl", "training.resolution": 1088}, TOO_LARGE),
    bad("flux at 1088", {"baseModel.variant": "flux-dev", "training.resolution": 1088}, TOO_LARGE),
    bad(
        "flux in fp16",
        {"baseModel.variant": "flux-dev", "training.mixedPrecision": "Fp16"},
        "flux-dev overflows in fp16; set training.mixedPrecision to Bf16 or Auto",
        "spec.training.mixedPrecision",
    ),
    bad(
        "zero terminal snr with epsilon",
        {"training.zeroTerminalSnr": True},
        "training.zeroTerminalSnr needs v_prediction: use baseModel.variant sd21-768 or turn it"
        " off",
        "spec.training.zeroTerminalSnr",
    ),
    bad(
        "min snr with flow matching",
        {"baseModel.variant": "flux-dev", "training.minSnrGamma": 5},
        "training.minSnrGamma has no meaning for flow matching; remove it for flux-dev",
        "spec.training.minSnrGamma",
    ),
    bad("two concepts without pictures", {"concepts.1": {"name": "b", "token": "c"}}, UPLOADS),
    bad(
        "one concept of two without pictures",
        {"concepts.1": {"name": "b", "token": "c", "sources": [STORE]}},
        UPLOADS,
        "spec.concepts",
    ),
    bad(
        "two base models",
        {"baseModel.source": STORE | {"session": {"name": "b"}}},
        ONE_MODEL_SOURCE,
    ),
    bad("no base model", {"baseModel.source": {}}, ONE_MODEL_SOURCE, "spec.baseModel.source"),
    bad(
        "a branch as revision",
        {"baseModel.source": {"huggingFace": BRANCH}},
        NO_COMMIT,
        "spec.baseModel.source.huggingFace.revision",
    ),
    bad(
        "two sources at once",
        {"concepts.0.sources": [STORE | {"archive": {"key": "b"}}]},
        ONE_IMAGE_SOURCE,
    ),
    bad(
        "a source of none",
        {"concepts.0.sources": [STORE, {}]},
        ONE_IMAGE_SOURCE,
        "spec.concepts[0].sources[1]",
    ),
    bad(
        "class images from two sources",
        {"training.priorPreservation": {"classPrompt": "a cat", "sources": [{}]}},
        ONE_IMAGE_SOURCE,
        "spec.training.priorPreservation.sources[0]",
    ),
    bad("captions by no model", {"captions.mode": "Model"}, NAME_MODEL, "spec.captions"),
    bad("missing captions by no model", {"captions.mode": "FilesThenModel"}, NAME_MODEL),
    bad(
        "an endpoint and a sidecar",
        {"captions.model": MODEL | {"sidecar": {}}},
        "captions.model takes an endpoint or a sidecar, not both; remove one",
        "spec.captions.model.sidecar",
    ),
    bad(
        "a gate without a model",
        {"gates": [{"name": "one", "question": "Is one person visible?"}]},
        "gates ask a vision-language model: name it in captions.model",
        "spec.gates",
    ),
    bad(
        "extraction without a model",
        {"extraction": {"schemaRef": {"name": "a", "key": "b"}}},
        "extraction asks a vision-language model: name it in captions.model",
        "spec.extraction",
    ),
    bad(
        "nothing to train",
        {"training": {"textEncoder": {"steps": 0}, "denoiser": {"steps": 0}}},
        "nothing to train: set training.textEncoder.steps or training.denoiser.steps above 0",
        "spec.training",
    ),
    bad(
        "lora without its method",
        {"training.lora": {}},
        "training.lora is only read with training.method: LoRA; set the method or remove lora",
    ),
    bad(
        "convolution rank without convolutions",
        {"training": {"method": "LoRA", "lora": {"convRank": 4}}},
        "lora.convRank and convAlpha need Convolution in lora.targets; add it or remove them",
        "spec.training.lora.targets",
    ),
    bad(
        "warm-up beyond the text encoder stage",
        {"training.textEncoder": {"steps": 5, "warmupSteps": 6}},
        WARMUP,
    ),
    bad(
        "warm-up beyond the denoiser stage",
        {"training.denoiser": {"steps": 5, "warmupSteps": 6}},
        WARMUP,
    ),
    bad(
        "a quantized base for full fine-tuning",
        {"training.memory": {"quantizedBase": "Nf4"}},
        "training.memory.quantizedBase freezes the base: set training.method: LoRA or"
        " quantizedBase: None",
        "spec.training.memory.quantizedBase",
    ),
    bad(
        "kept tokens without shuffling",
        {"training.captionKeepTokens": 1},
        "training.captionKeepTokens is only read with training.captionShuffle: true",
        "spec.training.captionKeepTokens",
    ),
    bad(
        "two pods in one Job",
        {"runtime.nodes": 2},
        "runtime.nodes above 1 needs a launcher that starts pods together; set runtime.launcher"
        " to JobSet or TrainJob",
        "spec.runtime.nodes",
    ),
    bad_conversion("two models", {"source": STORE | {"session": {"name": "b"}}}, ONE_MODEL_SOURCE),
    bad_conversion("no VAE", {"vae": {}}, ONE_MODEL_SOURCE, "spec.vae"),
    bad_ui("a model from nowhere", {"models.0": {"name": "a"}}, ONE_UI_SOURCE, "spec.models[0]"),
    bad_ui("a model from two places", {"models.0.store": {"key": "a"}}, ONE_UI_SOURCE),
    bad_ui(
        "exposed without authentication",
        {"expose": EXPOSED, "auth": {"mode": "None"}},
        NO_AUTH,
        "spec.auth.mode",
    ),
    bad_ui(
        "sign-in without issuer",
        {"auth.mode": "Oidc"},
        "auth.mode Oidc needs auth.oidc",
        "spec.auth",
    ),
    bad_ui(
        "forward to nowhere",
        {"auth.mode": "ForwardAuth"},
        "auth.mode ForwardAuth needs auth.forwardUrl",
    ),
    bad_ui(
        "exposed without host",
        {"expose.mode": "Ingress"},
        "an exposed UI needs expose.host",
        "spec.expose",
    ),
    bad_ui(
        "a route without Gateway",
        {"expose": EXPOSED | {"mode": "HTTPRoute"}},
        "expose.mode HTTPRoute needs at least one Gateway in expose.parentRefs",
    ),
    *(
        bad_ui(
            f"argument {flag}",
            {"extraArgs": ["--no-half", f"{flag}=1"]},
            FORBIDDEN,
            "spec.extraArgs",
        )
        for flag in (*FORBIDDEN_ARGUMENTS, "--shar", "--disable-safe", "--enable-insecure", "--li")
    ),
    bad_ui(
        "a default model that is not there",
        {"defaultModel": "b"},
        "defaultModel must be the name of an entry of models",
        "spec.defaultModel",
    ),
    bad_ui("flux in automatic1111", {"models.0.catalog": "flux-dev"}, NO_FLUX, "spec.engine"),
)
