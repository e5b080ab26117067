"""The low-rank update of a model (LoRA, DoRA): where it sits, how it begins, how it is thrown away.

peft computes it; everything random about it is drawn here, by seed and name. Files of it are
written elsewhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from kubebooth_api.v1alpha1.training import Lora, Training
from torch import Tensor, nn

from kubebooth_trainer.errors import ConfigurationError
from kubebooth_trainer.train import draws
from kubebooth_trainer.train.stages import Part
from kubebooth_trainer.train.weights import HasParts

ADAPTER = "default"
TARGETS = {
    "Attention": re.compile(
        r".*\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out|[qkv]_proj|out_proj)"
    ),
    "FeedForward": re.compile(
        r".*(\.ff(_context)?\.net\.(0\.proj|2)|\.mlp\.fc[12]|\.attentions\.\d+\.proj_(in|out)"
        r"|single_transformer_blocks\.\d+\.proj_(mlp|out))"
    ),
    "Convolution": re.compile(
        r".*(\.resnets\.\d+\.(conv[12]|conv_shortcut)|\.(down|up)samplers\.\d+\.conv)"
    ),
}
"""Kind of layer → paths of its modules, by the names of diffusers and transformers."""


@dataclass(frozen=True)
class Layer:
    """The update of one layer, as it stands: scale * up @ down beside the layer's own weight."""

    part: Part
    path: str
    """Path of the layer in the module of its part."""
    down: Tensor
    """[rank, inputs], or [rank, inputs, h, w] of a convolution."""
    up: Tensor
    """[outputs, rank], or [outputs, rank, 1, 1]."""
    alpha: float
    magnitude: Tensor | None
    """Of DoRA: length of each output's weights, [outputs]."""

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.down.shape[0]


class LowRank:
    """See `train.weights.Weights`. Puts itself into the model's modules, for good."""

    def __init__(self, model: HasParts, parts: Collection[Part], *, training: Training) -> None:
        """`parts` get an update; the weights of the model itself never change.

        Raises `ConfigurationError` when a part has no layer of the kinds asked for.
        """
        self._model, self._seed = model, training.seed
        self.shape = training.lora or Lora()
        for module in model.parts.values():
            module.requires_grad_(False)
            module.eval()
        self._layers: dict[Part, dict[str, Any]] = {}
        for part in model.parts:
            if part in parts:
                self._layers[part] = _injected(model.parts[part], part, self.shape)
        self._first_magnitudes = {
            name: weight.detach().clone()
            for part in self._layers
            for name, weight in self.of(part).items()
            if "lora_magnitude_vector" in name
        }
        for part in self._layers:
            self.discard(part)

    def of(self, part: Part) -> dict[str, nn.Parameter]:
        """See `Weights.of`; a part without an update has none."""
        found: dict[str, nn.Parameter] = {}
        for path, layer in self._layers.get(part, {}).items():
            for name, weight in layer.named_parameters():
                if name.startswith("lora_"):
                    found[f"{part}.{path}.{name}"] = weight
        return found

    def learn(self, parts: Collection[Part]) -> None:
        """See `Weights.learn`."""
        for part, module in self._model.parts.items():
            module.train(part in parts)
            for weight in self.of(part).values():
                weight.requires_grad_(part in parts)

    @torch.no_grad()
    def discard(self, part: Part) -> None:
        """See `Weights.discard`: A is drawn by seed and name, B is zero, magnitudes are the
        base's. A part that has learned nothing so changes nothing."""
        for name, weight in self.of(part).items():
            if name in self._first_magnitudes:
                weight.copy_(self._first_magnitudes[name])
            elif ".lora_A." in name:
                weight.copy_(_first_down(weight.shape, self._seed, name))
            else:
                weight.zero_()

    @contextmanager
    def base(self) -> Iterator[None]:
        """See `Weights.base`; nothing is lost."""
        self._switch(on=False)
        try:
            yield
        finally:
            self._switch(on=True)

    def _switch(self, *, on: bool) -> None:
        learning = {name for part in self._layers for name, w in self.of(part).items()
                    if w.requires_grad}  # fmt: skip
        for part, layers in self._layers.items():
            for layer in layers.values():
                layer.enable_adapters(on)
            # peft decides anew what learns when it switches; here the stage decides.
            for name, weight in self.of(part).items():
                weight.requires_grad_(name in learning)

    def layers(self) -> tuple[Layer, ...]:
        """The update as it stands, layer by layer, in the order of the modules."""
        return tuple(
            _read(part, path, layer)
            for part, layers in self._layers.items()
            for path, layer in layers.items()
        )


def chosen(module: nn.Module, lora: Lora) -> dict[str, bool]:
    """Path of each layer that gets an update → whether it counts as a convolution."""
    found: dict[str, bool] = {}
    for path, layer in module.named_modules():
        for target in lora.targets:
            if TARGETS[target].fullmatch(f".{path}") and _is_a_layer(layer):
                found[path] = target == "Convolution"
    return found


def _is_a_layer(module: nn.Module) -> bool:
    """Linear and convolution layers, and what quantization puts in their place."""
    return isinstance(getattr(module, "weight", None), Tensor) and not list(module.children())


def _injected(module: nn.Module, part: Part, lora: Lora) -> dict[str, Any]:
    """Put an update beside each chosen layer; the layers by path."""
    # Two seconds that a worker without LoRA need not spend.
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    paths = chosen(module, lora)
    if not paths:
        raise ConfigurationError(
            f"training.lora.targets {', '.join(lora.targets)}: the {part} of this base model has no"
            f" such layer; add Attention to the targets, or set training.{part}.steps to 0"
        )
    convolutions = [path for path, convolution in paths.items() if convolution]
    conv_rank = lora.conv_rank or lora.rank
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or lora.rank,
        target_modules=list(paths),
        rank_pattern={f"^{re.escape(path)}": conv_rank for path in convolutions},
        alpha_pattern={
            f"^{re.escape(path)}": lora.conv_alpha or conv_rank for path in convolutions
        },
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
    )
    inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    layers = {p: layer for p, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    for layer in layers.values():
        for name, weight in layer.named_parameters():
            if name.startswith("lora_"):
                # Whatever the base is kept in: what learns, learns in float32.
                weight.data = weight.data.float()
    return layers


def _first_down(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """Even in ±1/sqrt(inputs), as a linear layer begins ("LoRA", 2021, and peft)."""
    generator = torch.Generator().manual_seed(draws.key(seed, "lora", name) >> 1)
    edge = 1 / math.sqrt(math.prod(shape[1:]))
    return (torch.rand(tuple(shape), generator=generator) * 2 - 1) * edge


def _read(part: Part, path: str, layer: Any) -> Layer:
    magnitudes: Mapping[str, Any] = layer.lora_magnitude_vector
    magnitude = magnitudes[ADAPTER].weight if ADAPTER in magnitudes else None
    return Layer(
        part=part,
        path=path,
        down=layer.lora_A[ADAPTER].weight.detach(),
        up=layer.lora_B[ADAPTER].weight.detach(),
        alpha=float(layer.lora_alpha[ADAPTER]),
        magnitude=None if magnitude is None else magnitude.detach().reshape(-1),
    )
