"""The single file of a plan: its tensors, its metadata, and a YAML where loaders look for one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from kubebooth_trainer.convert import modelspec, tensors, views
from kubebooth_trainer.convert.declared import V_PREDICTION, json_of
from kubebooth_trainer.convert.detection import Detected
from kubebooth_trainer.convert.door import Opened, Planned, PlannedFile
from kubebooth_trainer.convert.keys.families import MARKERS, Component, Role
from kubebooth_trainer.convert.models import SIDE, Loaded, Model
from kubebooth_trainer.convert.options import Options
from kubebooth_trainer.convert.sidecars import SOURCE, inference_yaml

_MARKS_V = re.compile(r"(v_pred|ztsnr|edm_vpred\.sigma_(max|min))$")
_PRIVATE = {"_name_or_path", "_diffusers_version", "transformers_version", "torch_dtype", "dtype",
            "architectures", "auto_map"}  # fmt: skip


def files(
    model: Model, opened: Opened, options: Options, found: Detected
) -> tuple[tuple[PlannedFile, ...], dict[str, str]]:
    """The files to write, and what they leave out: source tensor → why."""
    kept = json_of(opened, SOURCE) or {}
    left = dict.fromkeys(model.foreign, "a single file has no such component")
    planned: list[Planned] = []
    for loaded in model.components.values():
        placed = _placed(loaded, found, kept)
        updates = model.updates.get(loaded.component.folder, {})
        planned += [tensors.of_single(link, placed, options, updates) for link in placed.links]
    written = {tensor.name for tensor in planned}
    side = f"{SIDE}/" if opened.form == "Diffusers" else ""
    for name, tensor in model.aside.items():
        if name in written:
            left[f"{side}{name}"] = "the model has a tensor of that name itself"
        elif _MARKS_V.match(name) and found.prediction_type != V_PREDICTION:
            left[f"{side}{name}"] = "a marker of v-prediction, which the model does not have"
        else:
            dtype = tensors.dtype_for(options, _role(name, model, found), tensor.dtype)
            planned.append(tensors.as_it_is(name, tensor, f"{side}{name}", dtype=dtype))
            written.add(name)
    planned += [_marker(name) for name in _markers(found) if name not in written]
    suffix = "safetensors" if options.form == "Safetensors" else "ckpt"
    file = PlannedFile(
        f"{options.name}.{suffix}",
        "Safetensors" if options.form == "Safetensors" else "Ckpt",
        tensors.in_order(planned),
        metadata=_metadata(model, opened, options, found, kept),
    )
    yaml = inference_yaml(found)
    if yaml is None:
        return (file,), left
    return (file, PlannedFile(f"{options.name}.yaml", "Text", text=yaml)), left


def _placed(loaded: Loaded, found: Detected, kept: Mapping[str, object]) -> Loaded:
    """The component under the prefix that the file has, or had before it became a folder."""
    prefix = loaded.prefix
    if found.kind == "Vae":
        prefix = found.prefixes.get("vae", "")
    prefixes = kept.get("prefixes")
    told = prefixes.get(loaded.component.folder) if isinstance(prefixes, dict) else None
    if isinstance(told, str) and told in _possible(loaded.component):
        prefix = told
    return Loaded(**{**loaded.__dict__, "prefix": prefix})


def _possible(component: Component) -> set[str]:
    """Prefixes that files of this component are known to have."""
    if component.role == "TextEncoder":
        return set(component.prefixes)
    return {"", *component.prefixes, *(("vae.",) if component.role == "Vae" else ())}


def _role(name: str, model: Model, found: Detected) -> Role | None:
    """The network that a tensor set aside belongs to; its precision follows that network's."""
    if name.endswith("position_ids"):
        return None
    if name.startswith("model_ema."):
        return "Denoiser"
    for loaded in model.components.values():
        prefix = loaded.prefix
        if prefix and name.startswith(prefix):
            return loaded.component.role
    return None


def _markers(found: Detected) -> tuple[str, ...]:
    if found.layout != "sdxl" or found.prediction_type != V_PREDICTION or found.kind != "Pipeline":
        return ()
    return MARKERS if found.zero_terminal_snr else MARKERS[:1]


def _marker(name: str) -> Planned:
    return Planned(name, "F32", (0,), views.joined([], dtype="F32"), ())


def _metadata(
    model: Model, opened: Opened, options: Options, found: Detected, kept: Mapping[str, object]
) -> dict[str, str]:
    before = dict(opened.metadata)
    remembered = kept.get("metadata")
    if isinstance(remembered, dict):
        before = {k: v for k, v in remembered.items() if isinstance(k, str) and isinstance(v, str)}
    told = modelspec.written(before, options.metadata, found, name=options.name)
    configs = {
        folder or "controlnet": {k: v for k, v in loaded.config.items() if k not in _PRIVATE}
        for folder, loaded in model.components.items()
        if loaded.config is not None
    }
    carried = modelspec.with_configs(configs or modelspec.configs_in(opened.metadata))
    return {**told, **carried}
