"""Which kind of model and which layout of names a source has, by its names, shapes and configs.

It must not weigh what a source merely declares about its training; that is detection's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from kubebooth_trainer.convert.declared import json_of
from kubebooth_trainer.convert.door import Opened
from kubebooth_trainer.convert.keys.families import FAMILIES, Family, Layout
from kubebooth_trainer.convert.options import ModelKind
from kubebooth_trainer.errors import ConfigurationError, DataError

Kind = Literal["Pipeline", "Vae", "ControlNet", "Lora"]
_DENOISER = "model.diffusion_model."
_CHANNELS = {4, 8, 9}
"""What UNets of these families read: latents, with a picture to edit, with a mask as well."""
_FLUX_CHANNELS = 64
"""What the transformer of Flux.1 reads: 16 channels of 2 x 2 latents."""
_LORA_ENDS = (
    ".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight",
    ".lora.down.weight", ".lora.up.weight", "_lora.down.weight", "_lora.up.weight",
    ".lora_A.default.weight", ".lora_B.default.weight",
    ".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".oft_diag", ".oft_blocks", ".diff", ".w_norm",
)  # fmt: skip


@dataclass(frozen=True)
class Recognised:
    """What names, shapes and configs show."""

    kind: Kind
    layout: Layout | None
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """Folder of each component that is there → its prefix in a single file."""
    in_channels: int | None = None
    guidance: bool | None = None
    """Whether a Flux transformer embeds guidance."""
    evidence: tuple[str, ...] = ()


def recognise(opened: Opened, asked: ModelKind) -> Recognised:
    """Kind and layout of a source. Raises `DataError` for a source that no rule knows, and
    `ConfigurationError` where another kind was asked for."""
    found = _recognised(opened)
    if asked not in {"Auto", found.kind}:
        raise ConfigurationError(
            f"component: {asked} was asked for, but the source is a {found.kind}"
            f" ({'; '.join(found.evidence)[:200]}); leave it to Auto",
            reason="ComponentMismatch",
        )
    return found


def _recognised(opened: Opened) -> Recognised:
    if not opened.tensors:
        raise DataError("the source holds no tensors; name the file or folder of a model",
                        reason="NoModel")  # fmt: skip
    if any(name.endswith(_LORA_ENDS) for name in opened.tensors):
        return _lora(opened)
    if opened.form == "Diffusers":
        return _folder(opened)
    return _single(opened)


# --- Diffusers layout


def _folder(opened: Opened) -> Recognised:
    index = json_of(opened, "model_index.json")
    if index is not None:
        return _pipeline(opened, str(index.get("_class_name")))
    config = json_of(opened, "config.json")
    if config is None:
        raise DataError(
            "the folder has neither model_index.json (a pipeline) nor config.json (one component);"
            " name the folder that has",
            reason="NoModel",
        )
    name = str(config.get("_class_name"))
    if name == "AutoencoderKL":
        return _folder_vae(config)
    if name == "ControlNetModel":
        layout = _unet_layout(config)
        said = f"config.json: ControlNetModel, text of width {config.get('cross_attention_dim')}"
        return Recognised("ControlNet", layout, {"": ""}, evidence=(said,))
    raise DataError(
        f"config.json names {name[:60]!r}, which is converted with its whole pipeline only; name"
        " the folder that has model_index.json",
        reason="UnknownFamily",
    )


def _pipeline(opened: Opened, pipeline: str) -> Recognised:
    folders = {name.partition("/")[0] for name in opened.tensors if "/" in name}
    said = f"model_index.json: {pipeline[:60]}"
    if "transformer" in folders and pipeline.startswith("Flux"):
        config = json_of(opened, "transformer/config.json") or {}
        guidance = config.get("guidance_embeds")
        _check_flux(config.get("in_channels", _FLUX_CHANNELS))
        return Recognised(
            "Pipeline", "flux", _present(FAMILIES["flux"], folders), guidance=guidance is True,
            evidence=(said, f"transformer/config.json: guidance_embeds {str(guidance)[:30]}"),
        )  # fmt: skip
    unet = json_of(opened, "unet/config.json")
    if unet is None or not pipeline.startswith("StableDiffusion"):
        raise DataError(
            f"{said} is of no family that is converted; known are Stable Diffusion 1, 2, XL and"
            " Flux.1",
            reason="UnknownFamily",
        )
    layout = _unet_layout(unet)
    channels = unet.get("in_channels", 4)
    if channels not in _CHANNELS:
        raise _odd_channels(channels)
    return Recognised(
        "Pipeline", layout, _present(FAMILIES[layout], folders), in_channels=channels,
        evidence=(said, f"unet/config.json: {_unet_evidence(unet)}"),
    )  # fmt: skip


def _present(family: Family, folders: set[str]) -> dict[str, str]:
    return {c.folder: c.prefixes[0] for c in family.components if c.folder in folders}


def _unet_layout(config: Mapping[str, object]) -> Layout:
    if config.get("addition_embed_type") is not None:
        return "sdxl"
    if config.get("cross_attention_dim") in {768, 1024}:
        return "sd1" if config["cross_attention_dim"] == 768 else "sd2"
    # Widths of one's own, such as in small models for tests.
    return "sd2" if config.get("use_linear_projection") is True else "sd1"


def _unet_evidence(config: Mapping[str, object]) -> str:
    names = ("cross_attention_dim", "use_linear_projection", "addition_embed_type", "in_channels")
    return ", ".join(f"{name} {str(config.get(name))[:30]}" for name in names if name in config)


def _folder_vae(config: Mapping[str, object]) -> Recognised:
    latents, scale = config.get("latent_channels", 4), config.get("scaling_factor", 0.18215)
    said = f"config.json: AutoencoderKL, {latents} latent channels, scaling_factor {scale}"
    layout: Layout = "sd1"
    if latents == 16:
        layout = "flux"
    elif scale == 0.13025:
        layout = "sdxl"
    return Recognised("Vae", layout, {"vae": ""}, evidence=(said[:200],))


# --- single files


def _single(opened: Opened) -> Recognised:
    names = opened.tensors
    for rule in (_single_control, _single_flux, _single_sd, _single_vae):
        found = rule(opened)
        if found is not None:
            return found
    some = ", ".join(sorted(names)[:3])
    if any(".down_blocks." in f".{name}" or "transformer_blocks." in name for name in names):
        raise DataError(
            f"the file has the names of a Diffusers layout ({some}), whose sizes stand in its"
            " config.json; name the folder that holds both",
            reason="NoConfig",
        )
    raise DataError(
        f"the names of this file ({some[:200]}) are of no family that is converted; known are"
        " Stable Diffusion 1, 2, XL and Flux.1, their VAEs, ControlNets and LoRAs",
        reason="UnknownFamily",
    )


def _single_control(opened: Opened) -> Recognised | None:
    prefix = _first(("control_model.", ""), "input_hint_block.0.weight", opened)
    if prefix is None:
        return None
    layout = _blocks_layout(opened, prefix)
    said = f"{prefix}input_hint_block: a ControlNet of {FAMILIES[layout].title}"
    return Recognised("ControlNet", layout, {"": prefix}, evidence=(said,))


def _single_flux(opened: Opened) -> Recognised | None:
    prefix = _first((_DENOISER, ""), "double_blocks.0.img_attn.qkv.weight", opened)
    if prefix is None:
        return None
    entry = opened.tensors.get(f"{prefix}img_in.weight")
    if entry is not None and entry.shape:
        _check_flux(entry.shape[-1])
    guidance = f"{prefix}guidance_in.in_layer.weight" in opened.tensors
    return Recognised(
        "Pipeline", "flux", _prefixes(FAMILIES["flux"], opened, prefix), guidance=guidance,
        evidence=(f"{prefix}double_blocks: Flux.1",
                  f"guidance_in {'is there: dev' if guidance else 'is absent: schnell'}"),
    )  # fmt: skip


def _single_sd(opened: Opened) -> Recognised | None:
    prefix = _first((_DENOISER, ""), "input_blocks.0.0.weight", opened)
    if prefix is None:
        return None
    if any(name.startswith("conditioner.embedders.0.model.") for name in opened.tensors):
        raise DataError(
            "conditioner.embedders.0.model: the refiner of Stable Diffusion XL is not converted;"
            " name its base model",
            reason="UnknownFamily",
        )
    layout = _blocks_layout(opened, prefix)
    said = [f"{prefix}: {_blocks_evidence(opened, prefix)}"]
    if layout != "sdxl":
        for text, other in (("cond_stage_model.model.", "sd2"),
                            ("cond_stage_model.transformer.", "sd1")):  # fmt: skip
            if any(name.startswith(text) for name in opened.tensors):
                layout = "sd2" if other == "sd2" else "sd1"
                said.append(f"{text}: text encoder of {FAMILIES[layout].title}")
                break
    shape = opened.tensors[f"{prefix}input_blocks.0.0.weight"].shape
    channels = shape[1] if len(shape) == 4 else 0
    if channels not in _CHANNELS:
        raise _odd_channels(channels)
    if channels != 4:
        said.append(f"input_blocks.0.0 reads {channels} channels")
    prefixes = _prefixes(FAMILIES[layout], opened, prefix)
    return Recognised("Pipeline", layout, prefixes, in_channels=channels, evidence=tuple(said))


def _single_vae(opened: Opened) -> Recognised | None:
    prefix = _first(("", "first_stage_model.", "vae."), "decoder.conv_in.weight", opened)
    if prefix is None or f"{prefix}encoder.down.0.block.0.conv1.weight" not in opened.tensors:
        return None
    shape = opened.tensors[f"{prefix}decoder.conv_in.weight"].shape
    latents = shape[1] if len(shape) == 4 else 0
    said = f"{prefix}decoder.conv_in: a VAE with {latents} latent channels"
    layout: Layout | None = "flux" if latents == 16 else None
    return Recognised("Vae", layout, {"vae": prefix}, evidence=(said,))


def _blocks_layout(opened: Opened, prefix: str) -> Layout:
    if f"{prefix}label_emb.0.0.weight" in opened.tensors:
        if f"{prefix}input_blocks.9.0.op.weight" in opened.tensors:
            raise DataError(
                "label_emb beside four levels: Stable Diffusion unCLIP is not converted",
                reason="UnknownFamily",
            )
        return "sdxl"
    width = opened.tensors.get(f"{prefix}{_TEXT}")
    if width is not None and width.shape[-1:] in {(768,), (1024,)}:
        return "sd1" if width.shape[-1] == 768 else "sd2"
    flat = opened.tensors.get(f"{prefix}middle_block.1.proj_in.weight")
    return "sd2" if flat is not None and len(flat.shape) == 2 else "sd1"


_TEXT = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def _blocks_evidence(opened: Opened, prefix: str) -> str:
    if f"{prefix}label_emb.0.0.weight" in opened.tensors:
        return "label_emb: added conditioning of Stable Diffusion XL"
    width = opened.tensors.get(f"{prefix}{_TEXT}")
    return f"attn2.to_k reads text of width {width.shape[-1] if width and width.shape else '?'}"


def _first(prefixes: Iterable[str], name: str, opened: Opened) -> str | None:
    return next((p for p in prefixes if f"{p}{name}" in opened.tensors), None)


def _prefixes(family: Family, opened: Opened, denoiser: str) -> dict[str, str]:
    """Components that are there; next to a bare denoiser nothing else can stand."""
    found = {family.denoiser.folder: denoiser}
    for component in family.components:
        for prefix in component.prefixes:
            if component.role != "Denoiser" and any(n.startswith(prefix) for n in opened.tensors):
                found.setdefault(component.folder, prefix)
    return found


def _check_flux(channels: object) -> None:
    if channels != _FLUX_CHANNELS:
        raise DataError(
            f"the transformer reads {str(channels)[:20]} channels, not {_FLUX_CHANNELS}: the Fill"
            " and Control variants of Flux.1 are not converted",
            reason="UnknownFamily",
        )


def _odd_channels(channels: object) -> DataError:
    return DataError(
        f"the UNet reads {str(channels)[:20]} channels; known are 4, 8 (editing) and 9"
        " (inpainting): depth and upscaling models are not converted",
        reason="UnknownFamily",
    )


# --- low-rank updates


def _lora(opened: Opened) -> Recognised:
    names = list(opened.tensors)

    marks: Mapping[Layout, tuple[str, ...]] = {
        "flux": ("double_blocks", "single_blocks", "single_transformer_blocks",
                 "transformer_transformer_blocks", "transformer.transformer_blocks"),
        "sdxl": ("lora_te1_", "lora_te2_", "text_encoder_2."),
    }  # fmt: skip
    for layout, words in marks.items():
        hit = next((name for name in names if any(word in name for word in words)), None)
        if hit is not None:
            return Recognised("Lora", layout, evidence=(hit[:120],))
    for name in names:
        width = opened.tensors[name].shape[1:2]
        reads = "attn2" in name and ("to_k" in name or "to_v" in name)
        if reads and ("down" in name or "lora_A" in name) and width:
            known: Mapping[int, Layout] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
            if width[0] in known:
                said = f"{name[:120]} reads text of width {width[0]}"
                return Recognised("Lora", known[width[0]], evidence=(said,))
    return Recognised("Lora", None, evidence=("low-rank updates of a family that shapes hide",))
