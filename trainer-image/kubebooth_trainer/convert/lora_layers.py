"""A file of low-rank updates as one canonical list, whatever names it came with, alpha read.

It reads a few values: alphas, and of fused updates whether their blocks stand on a diagonal.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubebooth_trainer.convert import views
from kubebooth_trainer.convert.declared import json_of
from kubebooth_trainer.convert.door import DTYPE_BYTES, Opened, Tensor
from kubebooth_trainer.convert.keys.clip import prefixed
from kubebooth_trainer.convert.keys.families import Layout
from kubebooth_trainer.convert.keys.lora import Place, diffusers_place, kohya_place
from kubebooth_trainer.errors import DataError

ADAPTER_METADATA = "lora_adapter_metadata"
"""Metadata key under which Diffusers keeps the configs of peft, flat, by component."""
_SUFFIXES: Mapping[str, str] = {
    ".lora_down.weight": "down", ".lora_up.weight": "up",
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha", ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
}  # fmt: skip
_OTHERS = re.compile(
    r"\.(hada_|lokr_|oft_|lora_mid|glora|diff(_b)?$|w_norm|b_norm|a1\.|b1\.|on_input|reg_map|boft"
    r"|lora_B\.bias|lora_embedding|ia3)"
)
"""Kinds of updates that are neither LoRA nor DoRA."""
_PROCESSOR = re.compile(r"\.processor\.(to_[qkv]|to_out|add_[qkv]_proj|to_add_out)_lora$")
_OLD_ROOTS = ("base_model.model.", "diffusion_model.")
_FORMATS = {"F16": "<e", "F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i"}


@dataclass(frozen=True)
class Layer:
    """The update of one module of the Diffusers layout: alpha / rank · up @ down."""

    folder: str
    path: str
    down: Tensor
    """[rank, in …]"""
    up: Tensor
    """[out, rank], or [out, rank, 1, 1] of a convolution."""
    alpha: float
    alpha_dtype: str | None
    """Dtype that the file has alpha in; None where it has none."""
    magnitude: Tensor | None
    """Of DoRA: length of each output's weights, [out]."""
    origins: tuple[str, ...]

    @property
    def rank(self) -> int:
        """Rank of the update."""
        return self.down.shape[0]


@dataclass
class _Found:
    """What stands under one name of the file."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Updates as they stand in the file: one of peft's, or all that one of kohya's fuses."""

    folder: str
    place: Place
    layer: Layer
    """The whole update; its path is that of the first part."""


def groups(
    opened: Opened, layout: Layout | None, ldm: Mapping[str, str] | None = None
) -> list[Group]:
    """Every update of a file; `ldm` see `diffusers_place`. Raises `DataError` that names the
    tensor."""
    by_name: dict[str, _Found] = {}
    for full, tensor in opened.tensors.items():
        suffix = next((s for s in _SUFFIXES if full.endswith(s)), None)
        name = full.removesuffix(suffix) if suffix else ""
        processor = re.search(r"_lora\.(down|up)\.weight$", full)
        if processor is not None:
            suffix, name = f".lora.{processor[1]}.weight", full[: processor.start()] + "_lora"
        if suffix is None:
            raise _unknown(full)
        found = by_name.setdefault(name, _Found())
        found.tensors[_SUFFIXES[suffix]] = tensor
        found.names.append(full)
    alphas = _Alphas(opened)
    return [
        _group(name, found, _placed(name, layout, ldm), alphas) for name, found in by_name.items()
    ]


def _group(name: str, found: _Found, placed: tuple[str, Place], alphas: _Alphas) -> Group:
    down, up = found.tensors.get("down"), found.tensors.get("up")
    if down is None or up is None:
        lacking = "down (lora_A)" if down is None else "up (lora_B)"
        raise DataError(f"{name} lacks its {lacking} matrix; the file is incomplete",
                        reason="MissingTensor")  # fmt: skip
    folder, place = placed
    rank = down.shape[0] if down.shape else 0
    if rank < 1 or len(down.shape) not in {2, 4} or up.shape[1:2] != (rank,):
        raise DataError(
            f"{name}: down {list(down.shape)} and up {list(up.shape)} are no low-rank update",
            reason="WrongShape",
        )
    given = found.tensors.get("alpha")
    alpha = _scalar(given, name) if given is not None else alphas.of(folder, place.parts[0], rank)
    layer = Layer(
        folder, place.parts[0], down, up, alpha, given.dtype if given is not None else None,
        _magnitude(found.tensors.get("magnitude"), up, name), tuple(found.names),
    )  # fmt: skip
    return Group(folder, place, layer)


def _magnitude(tensor: Tensor | None, up: Tensor, name: str) -> Tensor | None:
    """Lengths of DoRA as [out], whatever ones stand around them."""
    if tensor is None:
        return None
    if math.prod(tensor.shape) != up.shape[0]:
        raise DataError(
            f"{name}: magnitudes {list(tensor.shape)} are not one for each of {up.shape[0]}"
            " outputs; only DoRA over outputs is converted",
            reason="UnsupportedLora",
        )
    return views.reshaped(tensor, (up.shape[0],))


def _placed(name: str, layout: Layout | None, ldm: Mapping[str, str] | None) -> tuple[str, Place]:
    denoiser = "transformer" if layout == "flux" else "unet"
    if name.startswith("lora_"):
        known = diffusers_place(name, layout, ldm)
        if known is None:
            raise _unknown(name)
        part, place = known
        return denoiser if part == "denoiser" else part, place
    folder, path = denoiser, name
    for head in ("text_encoder_2", "text_encoder", "unet", "transformer"):
        if name.startswith(f"{head}."):
            folder, path = head, name.removeprefix(f"{head}.")
            break
    else:
        root = next((r for r in _OLD_ROOTS if name.startswith(r)), "")
        path = name.removeprefix(root)
        if "_blocks." not in path and "_block." not in path:
            raise _unknown(name)
    path = _PROCESSOR.sub(lambda m: f".{m[1]}{'.0' if m[1] == 'to_out' else ''}", path)
    if folder.startswith("text_encoder") and not path.startswith("encoder.block."):
        path = prefixed(path)
    return folder, Place(kohya_place(folder, path, layout or "sd1").name, parts=(path,))


def _unknown(name: str) -> DataError:
    other = _OTHERS.search(name)
    if other is not None:
        return DataError(
            f"{name[:120]} is an update of the kind {other[1].strip('._')}, which is neither LoRA"
            " nor DoRA; extract it as a LoRA first",
            reason="UnsupportedLora",
        )
    return DataError(
        f"{name[:120]} is no name of a LoRA that is known (kohya, peft, Diffusers); save it with"
        " one of these",
        reason="UnknownTensor",
    )


def _scalar(tensor: Tensor, name: str) -> float:
    """The value of alpha. Raises `DataError`."""
    data = views.read(tensor) if math.prod(tensor.shape) == 1 else b""
    if tensor.dtype == "BF16" and len(data) == 2:
        data, dtype = b"\0\0" + data, "F32"
    else:
        dtype = tensor.dtype
    if dtype in _FORMATS and len(data) == DTYPE_BYTES[dtype]:
        value = float(struct.unpack(_FORMATS[dtype], data)[0])
        if math.isfinite(value):
            return value
    raise DataError(f"{name}.alpha is no finite number; save the LoRA again", reason="BadAlpha")


class _Alphas:
    """Alphas that configs of peft tell; the rank where nothing does, as every loader takes it."""

    def __init__(self, opened: Opened) -> None:
        self._alone = json_of(opened, "adapter_config.json") or {}
        self._flat: Mapping[str, Any] = {}
        text = opened.metadata.get(ADAPTER_METADATA)
        if text is None:
            return
        try:
            flat = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"metadata {ADAPTER_METADATA} is not JSON; save the LoRA again",
                            reason="BadConfig") from error  # fmt: skip
        self._flat = flat if isinstance(flat, dict) else {}

    def of(self, folder: str, path: str, rank: int) -> float:
        """Alpha of a module such that the update counts alpha / rank. Raises `DataError`."""
        alpha = self._pattern(folder, path)
        if alpha is None:
            alpha = self._get(folder, "lora_alpha")
        if alpha is None:
            return float(rank)
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not _finite(alpha):
            raise DataError(f"lora_alpha of {folder} is no finite number; save the LoRA again",
                            reason="BadAlpha")  # fmt: skip
        if self._get(folder, "use_rslora") is True:
            return float(alpha) * math.sqrt(rank)
        return float(alpha)

    def _get(self, folder: str, name: str) -> Any:
        return self._flat.get(f"{folder}.{name}", self._flat.get(name, self._alone.get(name)))

    def _pattern(self, folder: str, path: str) -> Any:
        """Patterns are taken literally: running a stranger's regular expressions could take
        forever, and those written are paths."""
        patterns = self._get(folder, "alpha_pattern")
        if not isinstance(patterns, dict):
            return None
        for pattern, alpha in patterns.items():
            plain = str(pattern).removeprefix("^").removesuffix("$").replace("\\", "")
            if not re.fullmatch(r"[\w.]+", plain):
                raise DataError(
                    f"alpha_pattern {str(pattern)[:60]!r} is no path of a module; save the LoRA"
                    " with its alphas in one value",
                    reason="BadAlpha",
                )
            if path == plain or prefixed(plain) == path or path.endswith(f".{plain}"):
                return alpha
        return None


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def alpha_bytes(alpha: float, dtype: str) -> tuple[str, bytes]:
    """A dtype that holds alpha exactly, `dtype` if it does, and its bytes."""
    if dtype == "BF16":
        data = struct.pack("<f", alpha)
        if data[:2] == b"\0\0":
            return dtype, data[2:]
    elif dtype in {"F16", "F32", "F64"}:
        try:
            data = struct.pack(_FORMATS[dtype], alpha)
        except OverflowError:
            data = b""
        if data and struct.unpack(_FORMATS[dtype], data)[0] == alpha:
            return dtype, data
    return "F32", struct.pack("<f", alpha)
