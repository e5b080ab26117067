"""The catalogue agrees with the contract that names it."""

from __future__ import annotations

import re
import typing

from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.controlnets import CONTROL_NETS, control_nets_for
from kubebooth_api.v1alpha1.base_model import Variant
from kubebooth_api.v1alpha1.session import DreamboothSessionSpec

VARIANTS = typing.get_args(Variant)


def test_every_variant_that_can_be_named_has_a_row_and_no_other_has() -> None:
    assert tuple(BASE_MODELS) == VARIANTS
    assert all(row.variant == name for name, row in BASE_MODELS.items())


def test_the_rule_at_admission_knows_the_native_resolutions_of_the_catalogue() -> None:
    rule, message = next(
        (rule.rule, rule.message)
        for rule in DreamboothSessionSpec.rules
        if rule.path == ".training.resolution"
    )
    table = message.partition("(")[2].partition(")")[0]
    told: dict[str, int] = {}
    waiting: list[str] = []
    for word in re.findall(r"[\w-]+", table):
        if word.isdigit():
            told |= dict.fromkeys(waiting, int(word))
            waiting = []
        elif word != "and":
            waiting.append(word)
    assert told == {name: row.native_resolution for name, row in BASE_MODELS.items()}
    assert set(map(int, re.findall(r"\b\d{3,}\b", rule))) == set(told.values())


def test_what_overflows_in_fp16_is_not_offered_in_fp16() -> None:
    no_fp16 = {name for name, row in BASE_MODELS.items() if "Fp16" not in row.mixed_precisions}
    assert no_fp16 == {"flux-dev"}


def test_every_variant_has_control_nets_with_names_of_their_own() -> None:
    assert sum(len(control_nets_for(variant)) for variant in VARIANTS) == sum(
        len(row.variants) for row in CONTROL_NETS
    )
    assert all(control_nets_for(variant) for variant in VARIANTS)
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", r.name) for r in CONTROL_NETS)


def test_a_control_net_of_another_width_is_never_offered() -> None:
    for row in CONTROL_NETS:
        assert len({BASE_MODELS[variant].text_width for variant in row.variants}) == 1


def test_only_safetensors_of_a_named_repository_are_offered() -> None:
    assert all(row.file.endswith(".safetensors") for row in CONTROL_NETS)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", row.repo) for row in CONTROL_NETS)
    repositories = [repo for row in BASE_MODELS.values() for repo in row.repositories]
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", repo) for repo in repositories)


def test_the_seeds_control_nets_are_all_there() -> None:
    sd15 = {"canny", "depth", "lineart", "mlsd", "normalbae", "openpose", "scribble", "seg"}
    sd15 |= {"ip2p", "shuffle", "inpaint", "softedge", "lineart-anime", "tile"}
    adapters = {"keypose", "seg", "sketch", "depth", "canny", "color", "style", "openpose"}
    assert control_nets_for("sd15").keys() == sd15 | {f"t2i-{name}" for name in adapters}
    sd21 = {"canny", "depth", "hed", "openpose", "scribble"}
    assert control_nets_for("sd21-768").keys() == control_nets_for("sd21-512").keys() == sd21


def test_every_base_model_has_a_pinned_source_that_leads_its_repositories() -> None:
    for row in BASE_MODELS.values():
        assert row.source is not None
        assert row.source.repo == row.repositories[0]
        assert all(path.endswith(".safetensors") for path in row.digests)
    assert {name for name, row in BASE_MODELS.items() if row.gated} == {"flux-dev"}


def test_more_than_native_pixels_have_a_limit_too() -> None:
    for row in BASE_MODELS.values():
        assert row.native_resolution < row.greatest_resolution <= 2 * row.native_resolution
