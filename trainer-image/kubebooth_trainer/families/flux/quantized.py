"""The frozen transformer of Flux in 8 or 4 bits, by bitsandbytes, under a low-rank update.

Linear layers of the blocks, nearly all of the weights, are quantized one by one; what stands around
the blocks keeps its precision.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from kubebooth_trainer.errors import ConfigurationError

Form = Literal["Int8", "Nf4"]
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")


def quantize(network: nn.Module, form: Form, *, dtype: torch.dtype, device: torch.device) -> None:
    """Put quantized layers in place of the blocks' linear ones, on the device; `dtype` is that of
    what they compute. Raises `ConfigurationError` when the library is missing."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigurationError(
            f"training.memory.quantizedBase {form} needs the package bitsandbytes, which this"
            " worker does not have; install the extra kubebooth[quantized], or set it to None",
            reason="LibraryMissing",
        ) from error
    for name, layer in list(network.named_modules()):
        if type(layer) is nn.Linear and name.startswith(BLOCKS):
            parent, _, leaf = name.rpartition(".")
            quantized = _quantized(bitsandbytes.nn, layer, form, dtype)
            setattr(network.get_submodule(parent), leaf, quantized.to(device))
    network.to(device)


def _quantized(library: Any, layer: nn.Linear, form: Form, dtype: torch.dtype) -> nn.Module:
    sizes = {"input_features": layer.in_features, "output_features": layer.out_features}
    has_bias = layer.bias is not None
    weight = layer.weight.data.to(dtype)
    if form == "Nf4":
        made: Any = library.Linear4bit(
            **sizes, bias=has_bias, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        made.weight = library.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
        )
        # On some processors painting would repack the weights in place, in less precision.
        made.support_avx512bf16_for_cpu = False
    else:
        made = library.Linear8bitLt(
            **sizes, bias=has_bias, has_fp16_weights=False, threshold=0.0, device="meta"
        )
        made.weight = library.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if has_bias:
        made.bias = nn.Parameter(layer.bias.data.to(dtype), requires_grad=False)
    quantized: nn.Module = made
    return quantized
