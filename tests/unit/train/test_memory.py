"""Which profiles there are, which one is tried first, and what they are estimated to need."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from kubebooth_api.catalog import BASE_MODELS
from kubebooth_api.v1alpha1.training import Training
from kubebooth_trainer.families.activations import activation_bytes, width_of
from kubebooth_trainer.train import memory_states
from kubebooth_trainer.train.memory import (
    Profile,
    Sizes,
    cure,
    first_that_fits,
    ladder,
    lower,
    need_bytes,
    remembered,
)

GIB = 1 << 30


def names(training: dict[str, Any], *, accelerator: bool = True, has_8bit: bool = True) -> list:
    rungs = ladder(Training.parse(training), accelerator=accelerator, has_8bit=has_8bit)
    return ["+".join(rung.changes) for rung in rungs]


def test_the_ladder_gives_up_one_thing_after_the_other():
    assert names({}) == [
        "",
        "checkpointing",
        "checkpointing+released",
        "checkpointing+released+8bit",
        "checkpointing+released+8bit+fused",
        "checkpointing+released+8bit+fused+streamed",
    ]
    assert names({"memory": {"allowLora": True}})[-1].endswith("streamed+lora")


@pytest.mark.parametrize(
    ("training", "missing"),
    [
        ({"memory": {"allow8BitOptimizer": False}}, "8bit"),
        ({"memory": {"allowOffload": False}}, "released"),
        ({"memory": {"allowOffload": False}}, "streamed"),
        ({"gradientCheckpointing": "Off"}, "checkpointing"),
        ({"gradientCheckpointing": "Off"}, "streamed"),
        ({"optimizer": "Adafactor"}, "8bit"),
        ({"method": "LoRA", "memory": {"allowLora": True}}, "lora"),
        ({"method": "LoRA", "lora": {"dora": True}}, "streamed"),
        ({"method": "LoRA"}, "fused"),
        ({"optimizer": "Prodigy"}, "fused"),
        ({"gradientAccumulation": 2}, "fused"),
        ({"compile": True}, "fused"),
        ({}, "lora"),
    ],
)
def test_what_is_not_permitted_or_of_no_use_is_no_rung(training: dict[str, Any], missing: str):
    assert all(missing not in name for name in names(training))


def test_without_the_library_or_an_accelerator_their_rungs_are_missing():
    assert all("8bit" not in name for name in names({}, has_8bit=False))
    assert all("streamed" not in name for name in names({}, accelerator=False))


def test_updates_are_not_fused_where_losses_are_scaled():
    rungs = ladder(Training(), accelerator=True, has_8bit=True, scaled=True)
    assert not any(rung.has("fused") for rung in rungs)
    assert rungs[-1].has("streamed")


def test_checkpointing_that_is_asked_for_is_where_the_ladder_begins():
    assert names({"gradientCheckpointing": "On"})[0] == "checkpointing"


def test_the_first_profile_that_fits_is_tried_and_else_the_last():
    rungs = ladder(Training(), accelerator=True, has_8bit=True)
    needs = (40 * GIB, 20 * GIB, 18 * GIB, 10 * GIB, 8 * GIB, 4 * GIB)
    assert first_that_fits(rungs, needs, free_bytes=80 * GIB) == rungs[0]
    assert first_that_fits(rungs, needs, free_bytes=24 * GIB) == rungs[1]
    assert first_that_fits(rungs, needs, free_bytes=20 * GIB) == rungs[3]
    assert first_that_fits(rungs, needs, free_bytes=1 * GIB) == rungs[-1]
    assert lower(rungs, rungs[0]) == rungs[1]
    assert lower(rungs, rungs[-1]) is None


def sizes(variant: str, *, half: bool, edge: int | None = None) -> Sizes:
    row = BASE_MODELS[variant]
    edge = edge or row.native_resolution
    kept, less = activation_bytes(row.family, {}, samples=1, size=(edge, edge), half=half)
    encoders = row.memory.text_encoder_parameters
    return Sizes(
        row.memory.denoiser_parameters,
        encoders[0],
        sum(encoders[1:]),
        row.memory.vae_parameters,
        width_of(row.family, {}),
        kept,
        less,
    )


def needs_of(variant: str, training: dict[str, Any], *, half: bool = True, **more: Any) -> list:
    parsed = Training.parse(training)
    rungs = ladder(parsed, accelerator=True, has_8bit=True)
    return [
        need_bytes(
            rung,
            sizes(variant, half=half),
            training=parsed,
            learns_text=False,
            learns_denoiser=True,
            half=half,
            **more,
        )
        / GIB
        for rung in rungs
    ]


@pytest.mark.parametrize("variant", sorted(BASE_MODELS))
@pytest.mark.parametrize("method", ["Full", "LoRA"])
def test_every_rung_needs_less_than_the_one_above(variant: str, method: str):
    needs = needs_of(variant, {"method": method})
    assert all(below < above for above, below in pairwise(needs))


def test_the_estimates_are_near_what_others_publish():
    plain, checkpointing, *_, streamed = needs_of("sd15", {})
    assert 14 < plain < 20  # 24 GB cards train it plainly
    assert 12 < checkpointing < plain
    assert streamed < 2
    *_, eight_bit, fused, _ = needs_of("sdxl", {})
    assert 9 < eight_bit - fused < 10  # the gradients of 2.6 billion weights
    xl = needs_of("sdxl", {"method": "LoRA"}, frozen_bytes=2)
    assert 5 < xl[1] < 16  # "less than 16 GB" with checkpointing
    flux = needs_of("flux-dev", {"method": "LoRA"}, frozen_bytes=2)
    assert 24 < flux[2] < 36  # 26 to 40 GB are told
    nf4 = {"method": "LoRA", "memory": {"quantizedBase": "Nf4"}}
    assert 7 < needs_of("flux-dev", nf4, frozen_bytes=2)[2] < 14  # 9 to 13 GB are told


def test_a_profile_tells_what_it_changes_of_the_result():
    rungs = ladder(Training.parse({"memory": {"allowLora": True}}), accelerator=True, has_8bit=True)
    assert rungs[2].result_changes == ()
    assert rungs[-1].result_changes == ("8bit", "lora")
    trained = rungs[-1].applied(Training())
    assert (trained.optimizer, trained.method) == ("AdamW8bit", "LoRA")
    assert rungs[2].applied(Training()) == Training()
    told = rungs[-1].told(device="cuda", precision="bf16")
    assert told == "cuda-bf16-checkpointing-released-8bit-fused-streamed-lora"
    assert len(told) <= 64


def test_the_rung_that_the_store_remembers_counts_only_while_it_is_permitted():
    rungs = ladder(Training(), accelerator=True, has_8bit=True)
    told = {"version": 1, "changes": ["checkpointing", "released", "8bit"], "why": "x"}
    assert remembered(told, rungs) == rungs[3]
    less = ladder(Training(), accelerator=True, has_8bit=False)
    assert remembered(told, less) is None
    for broken in (None, [], {}, {"changes": 3}, {"changes": ["nonsense"]}):
        assert remembered(broken, rungs) is None


def test_the_cure_names_what_is_not_permitted_yet():
    training = Training.parse(
        {"gradientCheckpointing": "Off", "memory": {"allowOffload": False, "fallback": False}}
    )
    rungs = ladder(training, accelerator=True, has_8bit=True)
    said = cure(training, rungs, rungs[0])
    for field in (
        "training.gradientCheckpointing: Auto",
        "training.memory.fallback: true",
        "training.memory.allowOffload: true",
        "training.memory.allowLora: true",
        "training.batchSize",
        "runtime.resources",
    ):
        assert field in said
    assert Profile() in rungs


def test_moments_become_eight_bit_and_come_back_nearly():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(64, 80, generator=generator) * 1e-3
    tensors = {
        "exp_avg/denoiser.x": first,
        "exp_avg_sq/denoiser.x": first.square(),
        "exp_avg/denoiser.small": torch.ones(3),
        "exp_avg_sq/denoiser.small": torch.ones(3),
        "weights/denoiser.x": first,
    }
    small = memory_states.fitted_tensors(tensors, "AdamW8bit")
    assert small["state1/denoiser.x"].dtype == torch.uint8
    assert small["state1/denoiser.small"].dtype == torch.float32
    assert torch.equal(small["weights/denoiser.x"], first)
    assert not any(key.startswith("exp_avg") for key in small)
    back = memory_states.fitted_tensors(small, "AdamW")
    assert back.keys() == tensors.keys()
    greatest = float(first.abs().max())
    assert float((back["exp_avg/denoiser.x"] - first).abs().max()) < 0.02 * greatest
    assert torch.equal(back["exp_avg/denoiser.small"], torch.ones(3))
    assert memory_states.fitted_tensors(tensors, "AdamW") is tensors
