"""Canonical JSON, digests and what identifies a run."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubebooth_api.digests import DIGEST_PATTERN, canonical_json, digest_bytes, digest_json, short
from kubebooth_api.door import Door
from kubebooth_api.runs import run_digest
from kubebooth_api.v1alpha1.training import Training

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: (
        st.lists(children)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), children)
    ),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values))
def test_the_order_of_keys_never_changes_a_digest(value: dict[str, Any]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical_json(backwards) == canonical_json(value)
    assert DIGEST_PATTERN.match(digest_json(value))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_has_no_digest(number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digest_json({"loss": number})


def test_a_digest_is_the_sha256_of_the_bytes() -> None:
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_bytes(b"") == empty
    assert short(empty) == "e3b0c44298fc"


DATASET, MODEL = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
RICH: dict[str, Any] = {
    "method": "LoRA",
    "lora": {},
    "ema": {},
    "validation": {},
    "minSnrGamma": 5.0,
    "priorPreservation": {"classPrompt": "a cat", "sources": [{"store": {"key": "c"}}]},
    "conceptStage": {"sources": [{"store": {"key": "d"}}]},
}
"""A training in which every optional part is there, so that a walk meets every field."""

NOT_IN_THE_IDENTITY = {
    "textEncoder.steps",
    "denoiser.steps",
    "conceptStage.steps",
    "gradientCheckpointing",
    "allowNonNativeResolution",
    "resolution",
}
"""Targets, what only decides speed or memory, and what is passed by itself."""


def identity(training: Training, **changes: Any) -> str:
    inputs: dict[str, Any] = {
        "variant": "sd15",
        "resolution": 512,
        "dataset_digest": DATASET,
        "base_model_digest": MODEL,
    }
    return run_digest(training=training, **{**inputs, **changes})


def other(value: Any, annotation: Any) -> Any:
    """A value of the same field that differs from `value`."""
    choices = [c for c in _literals(annotation) if c != value]
    if choices and not isinstance(value, list):
        return choices[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 64
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, list):
        return [choices[-1]] if choices else []
    if isinstance(value, str):
        return f"{value} x"
    return {"float": 3.0, "int": 64}[_number_type(annotation)]


def _literals(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [found for argument in typing.get_args(annotation) for found in _literals(argument)]


def _number_type(annotation: Any) -> str:
    return "float" if "float" in str(annotation) else "int"


def walk(model: Door, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field below a model: camelCase path, and another value for it."""
    dumped = model.model_dump(mode="json", by_alias=True)
    for name, info in type(model).model_fields.items():
        alias = info.alias or name
        value = getattr(model, name)
        here = f"{path}.{alias}".removeprefix(".")
        if isinstance(value, Door):
            yield from walk(value, here)
        elif isinstance(value, tuple) and value and isinstance(value[0], Door):
            yield here, [*dumped[alias], {"store": {"key": "other"}}]
        else:
            yield here, other(dumped[alias], info.annotation)


def changed(path: str, value: Any) -> Training:
    spec: dict[str, Any] = Training.parse(RICH).dump()
    target = spec
    *parents, last = path.split(".")
    for parent in parents:
        target = target[parent]
    target[last] = value
    return Training.parse(spec)


FIELDS = dict(walk(Training.parse(RICH)))


def test_the_walk_meets_every_part_of_a_training() -> None:
    parts = {path.partition(".")[0] for path in FIELDS}
    assert parts == {info.alias for info in Training.model_fields.values()}
    assert len(FIELDS) > 50


@pytest.mark.parametrize("path", sorted(FIELDS.keys() - NOT_IN_THE_IDENTITY))
def test_a_changed_field_starts_another_run(path: str) -> None:
    assert identity(changed(path, FIELDS[path])) != identity(Training.parse(RICH))


@pytest.mark.parametrize("path", sorted(NOT_IN_THE_IDENTITY))
def test_targets_and_what_only_decides_speed_continue_the_same_run(path: str) -> None:
    assert identity(changed(path, FIELDS[path])) == identity(Training.parse(RICH))


@pytest.mark.parametrize("stage", ["textEncoder", "denoiser"])
def test_a_stage_that_is_skipped_is_another_run(stage: str) -> None:
    assert identity(changed(f"{stage}.steps", 0)) != identity(Training.parse(RICH))
    assert identity(changed(f"{stage}.steps", 1)) == identity(Training.parse(RICH))


@pytest.mark.parametrize("part", ["lora", "ema", "validation", "priorPreservation", "conceptStage"])
def test_an_optional_part_with_all_defaults_is_not_the_same_as_none(part: str) -> None:
    without = {name: value for name, value in RICH.items() if name != part}
    assert identity(Training.parse(without)) != identity(Training.parse(RICH))


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "sd21-512"},
        {"resolution": 256},
        {"dataset_digest": MODEL},
        {"base_model_digest": DATASET},
        {"rerun": "again"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_inputs_or_a_new_token_are_another_run(change: dict[str, Any]) -> None:
    assert identity(Training(), **change) != identity(Training())


def test_writing_a_default_out_is_the_same_run() -> None:
    assert identity(Training.parse(Training().dump())) == identity(Training())


def test_the_identity_of_a_default_training_never_changes() -> None:
    # A new value here means that every finished session would train again after an upgrade.
    assert (
        identity(Training())
        == "sha256:78972f8acaeb493ad0fa8ed6fca3705f88abdce5359c0097bdcf4bc963345314"
    )
