"""The estimate of activations against what autograd saves in networks of the real size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from kubebooth_trainer.families.activations import activation_bytes
from torch._subclasses.fake_tensor import FakeTensorMode


def saved(make: Callable[[], Any], given: Callable[[], dict[str, Any]], *, recompute: bool) -> int:
    """Bytes that autograd keeps of one forward pass, weights not counted; nothing is computed."""
    kept: dict[int, torch.UntypedStorage] = {}
    with FakeTensorMode():
        network = make().train()
        if recompute:
            network.enable_gradient_checkpointing()
        own = {weight.untyped_storage()._cdata for weight in network.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(**given(), return_dict=False)
        return sum(storage.nbytes() for storage in kept.values())


def sd() -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    return lambda: UNet2DConditionModel(cross_attention_dim=768), lambda: {
        "sample": torch.randn(1, 4, 64, 64),
        "timestep": torch.tensor([1]),
        "encoder_hidden_states": torch.randn(1, 77, 768),
    }


def flux() -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
    def make() -> Any:
        return FluxTransformer2DModel(num_layers=2, num_single_layers=4, guidance_embeds=True)

    return make, lambda: {
        "hidden_states": torch.randn(1, 1024, 64),
        "timestep": torch.randn(1),
        "guidance": torch.randn(1),
        "pooled_projections": torch.randn(1, 768),
        "encoder_hidden_states": torch.randn(1, 512, 4096),
        "txt_ids": torch.randn(512, 3),
        "img_ids": torch.randn(1024, 3),
    }


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("family", "made", "config"),
    [("sd", sd, {}), ("flux", flux, {"num_layers": 2, "num_single_layers": 4})],
)
def test_the_estimate_is_what_autograd_keeps(
    family: str, made: Callable[[], Any], config: dict[str, Any], recompute: bool
):
    make, given = made()
    measured = saved(make, given, recompute=recompute)
    kept, less = activation_bytes(family, config, samples=1, size=(512, 512), half=False)
    estimate = less if recompute else kept
    # With gradient checkpointing a block is recomputed on top of what autograd keeps.
    assert measured <= 1.15 * estimate
    assert estimate <= (3.5 if recompute else 1.25) * measured


def test_half_precision_more_samples_and_larger_pictures_count():
    one = activation_bytes("sdxl", {}, samples=1, size=(1024, 1024), half=False)
    two = activation_bytes("sdxl", {}, samples=2, size=(1024, 1024), half=False)
    half = activation_bytes("sdxl", {}, samples=1, size=(1024, 1024), half=True)
    large = activation_bytes("sdxl", {}, samples=1, size=(2048, 1024), half=False)
    assert two == tuple(2 * each for each in one)
    assert large == two
    assert half < one
    # SDXL at its size, float32, as counted by hand with the configuration of the real files.
    assert one[0] == pytest.approx(13.76e9, rel=0.05)
