"""Rule by rule: what the real API server refuses, and that the message names the cure."""

from __future__ import annotations

import copy
import re
import typing
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from kubebooth_api.crd.definition import NAME_RULE
from kubebooth_api.crd.kinds import KINDS, Kind
from kubebooth_api.door import Door, Rule
from kubebooth_api.v1alpha1 import API_VERSION, GROUP, VERSION
from kubebooth_api.v1alpha1.common import NO_COMMIT
from kubebooth_api.v1alpha1.webui import FORBIDDEN_ARGUMENTS
from kubebooth_cluster.api import ApiError
from kubebooth_cluster.testing import RealApi

GOOD: dict[str, dict[str, Any]] = {
    "DreamboothSession": {
        "baseModel": {"variant": "sd15"},
        "concepts": [{"name": "cat", "token": "sks"}],
    },
    "ModelConversion": {
        "source": {"store": {"key": "models/a"}},
        "target": {"format": "Safetensors"},
    },
    "WebUIInstance": {"models": [{"name": "a", "catalog": "sd15"}]},
}
BY_KIND = {kind.kind: kind for kind in KINDS}


@dataclass(frozen=True)
class Refusal:
    """A good manifest with one fault, and what the refusal must say."""

    name: str
    kind: str
    changes: dict[str, Any]
    """Path below `spec` → value; None removes."""
    says: str
    at: str = ""
    """Field that the refusal names."""
    object_name: str = field(default="bad")


def bad(name: str, changes: dict[str, Any], says: str, at: str = "") -> Refusal:
    return Refusal(name, "DreamboothSession", changes, says, at)


def bad_conversion(name: str, changes: dict[str, Any], says: str, at: str = "") -> Refusal:
    return Refusal(name, "ModelConversion", changes, says, at)


def bad_ui(name: str, changes: dict[str, Any], says: str, at: str = "") -> Refusal:
    return Refusal(name, "WebUIInstance", changes, says, at)


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
IMMUTABLE = "source is immutable; create another ModelConversion for another source"
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
        for flag in FORBIDDEN_ARGUMENTS
    ),
    bad_ui(
        "a default model that is not there",
        {"defaultModel": "b"},
        "defaultModel must be the name of an entry of models",
        "spec.defaultModel",
    ),
    bad_ui("flux in automatic1111", {"models.0.catalog": "flux-dev"}, NO_FLUX, "spec.engine"),
)

SHAPES = (
    bad("a field that is misspelt", {"traning": {}}, 'unknown field "spec.traning"'),
    bad(
        "a field of a list entry that is misspelt",
        {"concepts.0.tokn": "x"},
        'unknown field "spec.concepts[0].tokn"',
    ),
    bad("no base model at all", {"baseModel": None}, "spec.baseModel: Required value"),
    bad("no concept", {"concepts": []}, "spec.concepts in body should have at least 1 items"),
    bad(
        "an unknown variant", {"baseModel.variant": "sd16"}, 'supported values: "sd15", "sd21-512"'
    ),
    bad(
        "two concepts of one name",
        {"concepts.1": {"name": "cat", "token": "x"}},
        'Duplicate value: {"name":"cat"}',
    ),
    bad(
        "seventeen concepts",
        {"concepts": [{"name": f"c{n}", "token": "t"} for n in range(17)]},
        "must have at most 16 items",
    ),
    bad(
        "a resolution between two multiples",
        {"training.resolution": 500},
        "should be a multiple of 64",
    ),
    bad("negative steps", {"training.denoiser.steps": -1}, "should be greater than or equal to 0"),
    bad(
        "a learning rate of zero", {"training.denoiser.learningRate": 0}, "should be greater than 0"
    ),
    bad("steps as text", {"training.denoiser.steps": "100"}, "must be of type integer"),
    bad(
        "a prompt of 2049 characters",
        {"concepts.0.instancePrompt": "x" * 2049},
        "Too long: may not be more than 2048",
    ),
    bad("a token that begins with a blank", {"concepts.0.token": " sks"}, "spec.concepts[0].token"),
    bad(
        "a key that climbs to the root",
        {"baseModel.source": {"store": {"key": "/etc"}}},
        "spec.baseModel.source.store.key",
    ),
    bad(
        "a file address",
        {"concepts.0.sources": [{"url": {"href": "file:///etc/passwd"}}]},
        "spec.concepts[0].sources[0].url.href",
    ),
    bad("a bucket in capitals", {"storage.bucket": "MyBucket"}, "spec.storage.bucket"),
    bad("memory in words", {"runtime.resources.memory": "a lot"}, "spec.runtime.resources.memory"),
    bad(
        "a map without end",
        {"runtime.nodeSelector": {f"k{n}": "v" for n in range(33)}},
        "must have at most 32",
    ),
    bad(
        "a label value of 257",
        {"runtime.nodeSelector": {"k": "v" * 257}},
        "Too long: may not be more than 256",
    ),
    bad_conversion(
        "a format of its own",
        {"target.format": "Onnx"},
        'supported values: "Diffusers", "Safetensors", "Ckpt"',
    ),
    bad_ui("two replicas", {"replicas": 2}, "should be less than or equal to 1"),
    bad_ui("no model", {"models": []}, "should have at least 1 items"),
)


def manifest(row: Refusal) -> dict[str, Any]:
    spec = copy.deepcopy(GOOD[row.kind])
    for path, value in row.changes.items():
        _set(spec, path.split("."), value)
    metadata = {"name": row.object_name, "namespace": "default"}
    return {"apiVersion": API_VERSION, "kind": row.kind, "metadata": metadata, "spec": spec}


def _set(target: Any, path: list[str], value: Any) -> None:
    name: Any = int(path[0]) if isinstance(target, list) else path[0]
    if len(path) == 1 and value is None:
        del target[name]
    elif len(path) == 1 and isinstance(target, list) and name == len(target):
        target.append(value)
    elif len(path) == 1:
        target[name] = value
    elif isinstance(target, dict):
        _set(target.setdefault(name, {}), path[1:], value)
    else:
        _set(target[name], path[1:], value)


def collection(kind: Kind, namespace: str = "default") -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{kind.plural}"


def refused(server: RealApi, row: Refusal) -> str:
    """What the API server says to a faulty manifest, decoded from its JSON quoting."""
    path = f"{collection(BY_KIND[row.kind])}?dryRun=All&fieldValidation=Strict"
    with pytest.raises(ApiError) as caught:
        server.api.post(path, manifest(row))
    assert caught.value.code in {400, 422}
    return re.sub(r"\s+", " ", str(caught.value))


def doors(model: type[Door]) -> Iterator[type[Door]]:
    """A model class and every class below it."""
    yield model
    for info in model.model_fields.values():
        for found in _doors_of(info.annotation):
            yield from doors(found)


def _doors_of(annotation: Any) -> Iterator[type[Door]]:
    if isinstance(annotation, type) and issubclass(annotation, Door):
        yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _doors_of(argument)


def every_rule() -> set[Rule]:
    models = [model for kind in KINDS for part in (kind.spec, kind.status) for model in doors(part)]
    return {rule for model in models for rule in model.rules} | {NAME_RULE}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_manifest_that_faults_are_put_into_is_accepted(server: RealApi, kind: Kind) -> None:
    row = Refusal("good", kind.kind, {}, "")
    path = f"{collection(kind)}?dryRun=All&fieldValidation=Strict"
    assert server.api.post(path, manifest(row))["kind"] == kind.kind


@pytest.mark.parametrize("row", RULES, ids=lambda row: row.name)
def test_a_broken_rule_is_refused_with_its_cure(server: RealApi, row: Refusal) -> None:
    said = refused(server, row)
    assert row.says in said
    assert row.at in said


@pytest.mark.parametrize("row", SHAPES, ids=lambda row: row.name)
def test_a_wrong_shape_is_refused_by_field(server: RealApi, row: Refusal) -> None:
    assert row.says in refused(server, row)


def test_the_source_of_a_conversion_cannot_be_changed_but_the_rest_can(server: RealApi) -> None:
    kind = BY_KIND["ModelConversion"]
    name = f"frozen-{uuid.uuid4().hex[:8]}"
    row = Refusal("good", kind.kind, {}, "", object_name=name)
    server.api.post(collection(kind), manifest(row))
    path = f"{collection(kind)}/{name}"
    changed = server.api.merge(path, {"spec": {"verify": {"load": True}}})
    assert changed["spec"]["verify"]["load"] is True
    with pytest.raises(ApiError, match=IMMUTABLE):
        server.api.merge(path, {"spec": {"source": {"store": {"key": "models/b"}}}})
    server.api.delete(path)


def test_every_rule_of_every_class_has_a_manifest_that_breaks_it() -> None:
    tested = {row.says for row in RULES} | {IMMUTABLE}
    untested = {rule.message for rule in every_rule()} - tested
    assert untested == set()


def test_no_manifest_claims_a_message_that_no_rule_has() -> None:
    assert {row.says for row in RULES} - {rule.message for rule in every_rule()} == set()
