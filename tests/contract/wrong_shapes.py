"""Manifests whose shape is wrong: unknown fields, bounds, types, patterns."""

from __future__ import annotations

from tests.contract.refusal import bad, bad_conversion, bad_ui

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
