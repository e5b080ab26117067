"""Fills networks from files without first filling them at random, in the precision asked for.

It must not know what a network is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from kubebooth_trainer.errors import ConfigurationError, DataError
from kubebooth_trainer.families.door import Part, Placement
from kubebooth_trainer.families.files import WeightFiles, read_json, weight_files

Rename = Callable[[str], str | None]
"""Name in the file → name in the network, or None for what the network does not keep."""
RECOMPUTE = (
    "enable_gradient_checkpointing",
    "activation_checkpointing_enable",
    "gradient_checkpointing_enable",
)
KEEP = (
    "disable_gradient_checkpointing",
    "activation_checkpointing_disable",
    "gradient_checkpointing_disable",
)
"""What Diffusers, Transformers and older Transformers call it."""

MALFORMED = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    ImportError,
    StrictDataclassError,
)
"""What Diffusers and Transformers raise over a config that describes no network."""
MOST_LAYERS, LONGEST_LIST = 512, 64
"""More of them a config cannot ask for: building them would go on for ever."""


def _same(key: str) -> str:
    return key


def dtype_of(part: Part, placement: Placement, *, trained: frozenset[Part]) -> torch.dtype:
    """The dtype in which a part's weights are kept."""
    return placement.trained if part in trained else placement.frozen


def refuse_quantized(placement: Placement, *, family: str) -> None:
    """Raise `ConfigurationError` for a quantized base where a family has none."""
    if placement.quantized != "None":
        raise ConfigurationError(
            f"training.memory.quantizedBase {placement.quantized} is for Flux; set it to None for"
            f" {family}"
        )


def computing(placement: Placement) -> AbstractContextManager[Any]:
    """The precision of forward passes."""
    if placement.autocast is None:
        return nullcontext()
    return torch.autocast(placement.device.type, dtype=placement.autocast)


def recompute(networks: Iterable[nn.Module], *, on: bool) -> None:
    """Turn gradient checkpointing on or off, in networks of Diffusers and of Transformers."""
    for network in networks:
        names = RECOMPUTE if on else KEEP
        getattr(network, next(name for name in names if hasattr(network, name)))()


def read_config(folder: Path, component: str) -> dict[str, Any]:
    """The config.json of a network. Raises `DataError` when it asks for endless layers."""
    config = read_json(folder, f"{component}/config.json")
    for key, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        endless = "layers" in key and any(
            isinstance(number, int | float) and not number <= MOST_LAYERS for number in numbers
        )
        if endless or len(numbers) > LONGEST_LIST:
            raise DataError(
                f"base model: {component}/config.json has {key} {str(value)[:60]}, which no network"
                " has; upload the model again"
            )
    return config


def load_network(
    folder: Path,
    component: str,
    kind: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rename: Rename = _same,
) -> Any:
    """A network of Diffusers, of class `kind`. Raises `DataError` when keys or shapes differ."""
    config = read_config(folder, component)

    def make() -> nn.Module:
        with torch.device("meta"):
            network: nn.Module = kind.from_config(config)
        return network

    return build(
        make, weight_files(folder, component), dtype=dtype, device=device, rename=lambda _: rename
    )


def build(
    make: Callable[[], nn.Module],
    weights: WeightFiles,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rename: Callable[[set[str]], Rename],
) -> nn.Module:
    """A network that `make` gives on the meta device, filled; `rename` is asked with its keys.

    Raises `DataError` when keys or shapes differ.
    """
    try:
        network = make()
        name = rename(set(network.state_dict()))
        tensors = {
            new: placed(tensor, dtype=dtype, device=device)
            for key, tensor in weights.tensors()
            if (new := name(key)) is not None
        }
        network.load_state_dict(tensors, strict=True, assign=True)
    except MALFORMED as error:
        raise DataError(
            f"base model: {weights.component}/ does not hold the weights its config.json describes"
            f" ({str(error)[:300]})"
        ) from error
    return network


def placed(tensor: Tensor, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy on the device; whole numbers keep their type."""
    wanted = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device, wanted, copy=True)


@torch.no_grad()
def refill(network: nn.Module, weights: WeightFiles, *, rename: Rename = _same) -> None:
    """Put the weights of the files back into a network that was filled from them."""
    present = network.state_dict()
    for key, tensor in weights.tensors():
        new = rename(key)
        if new is not None and new in present:
            present[new].copy_(tensor)
