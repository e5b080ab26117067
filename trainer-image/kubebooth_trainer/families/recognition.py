"""Whether a Diffusers layout is of a variant, by what its JSON files say.

It must not import torch, diffusers or transformers: it runs before any of them is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kubebooth_api.catalog import BASE_MODELS

ReadJson = Callable[[str], Mapping[str, Any]]
"""Path in the layout → its JSON object. Raises what the caller likes when there is none."""
SCHEDULER = "scheduler/scheduler_config.json"


class Unfit(Exception):
    """The layout is not of the variant; the message is the evidence."""


class OtherVariant(Unfit):
    """The layout is of another variant, or of none that can be trained."""


class Mixed(Unfit):
    """The components are not of one model."""


@dataclass(frozen=True)
class Layout:
    """What `model_index.json` of a family must say."""

    pipeline: str
    components: Mapping[str, str]
    """Component → class."""
    weighted: tuple[str, ...]
    """Components that have weights."""
    tokenizers: tuple[str, ...]
    """CLIP tokenizers."""


_SD = Layout(
    "StableDiffusionPipeline",
    {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
    },
    ("unet", "vae", "text_encoder"),
    ("tokenizer",),
)
_SDXL = Layout(
    "StableDiffusionXLPipeline",
    {
        **_SD.components,
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer_2": "CLIPTokenizer",
    },
    (*_SD.weighted, "text_encoder_2"),
    ("tokenizer", "tokenizer_2"),
)
_FLUX = Layout(
    "FluxPipeline",
    {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer_2": "T5Tokenizer",
    },
    ("transformer", "vae", "text_encoder", "text_encoder_2"),
    ("tokenizer",),
)
LAYOUTS = {"sd": _SD, "sdxl": _SDXL, "flux": _FLUX}
"""Family → its layout."""
_KNOWN_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL",
                 4096: "Flux"}  # fmt: skip
"""Text widths of published models. Others are models of one's own: classes decide then."""


def layout_of(variant: str) -> Layout:
    """The layout of a variant's family."""
    return LAYOUTS[BASE_MODELS[variant].family]


def check(variant: str, read: ReadJson) -> None:
    """Raise `OtherVariant` or `Mixed` unless the layout is of the variant."""
    layout = layout_of(variant)
    _check_index(layout, read("model_index.json"))
    _check_channels(variant, read)
    _check_prediction(variant, read(SCHEDULER))
    {"sd": _check_sd, "sdxl": _check_sdxl, "flux": _check_flux}[BASE_MODELS[variant].family](read)
    _check_width(variant, read)


def _check_index(layout: Layout, index: Mapping[str, Any]) -> None:
    pipeline = index.get("_class_name")
    if pipeline != layout.pipeline:
        raise OtherVariant(f"model_index.json says {short(pipeline)}, not {layout.pipeline}")
    for component, expected in layout.components.items():
        entry = index.get(component)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        # Fast and slow tokenizers read the same files.
        if found not in {expected, f"{expected}Fast"}:
            raise OtherVariant(f"model_index.json has {component} {short(found)}, not {expected}")


def _denoiser(variant: str) -> str:
    return "transformer" if BASE_MODELS[variant].denoiser == "Transformer" else "unet"


def _check_channels(variant: str, read: ReadJson) -> None:
    name = _denoiser(variant)
    latent = BASE_MODELS[variant].latent_channels
    # A transformer reads squares of two by two latent pixels as one.
    wanted = 4 * latent if name == "transformer" else latent
    channels = read(f"{name}/config.json").get("in_channels")
    if channels != wanted:
        hint = " (an inpainting model)" if (name, channels) == ("unet", 9) else ""
        raise OtherVariant(
            f"{name}/config.json has in_channels {short(channels)}{hint}, not {wanted}"
        )
    found = read("vae/config.json").get("latent_channels")
    if found != latent:
        raise OtherVariant(f"vae/config.json has latent_channels {short(found)}, not {latent}")


def _check_prediction(variant: str, scheduler: Mapping[str, Any]) -> None:
    wanted = BASE_MODELS[variant].prediction_type
    flow = str(scheduler.get("_class_name")).startswith("FlowMatch")
    # Absent in the oldest files, where it was always epsilon.
    predicts = "flow" if flow else scheduler.get("prediction_type", "epsilon")
    if predicts != wanted:
        raise OtherVariant(f"{SCHEDULER} predicts {short(predicts)}, but {variant} is {wanted}")


def _check_sd(read: ReadJson) -> None:
    width = read("unet/config.json").get("cross_attention_dim")
    encoder = read("text_encoder/config.json").get("hidden_size")
    if type(width) is not int or width != encoder:
        raise Mixed(
            f"unet/config.json reads text of width {short(width)}, but text_encoder/config.json"
            f" gives {short(encoder)}: they belong to different models"
        )


def _check_sdxl(read: ReadJson) -> None:
    unet = read("unet/config.json")
    if unet.get("addition_embed_type") != "text_time":
        raise OtherVariant(
            f"unet/config.json has addition_embed_type {short(unet.get('addition_embed_type'))},"
            " not 'text_time'"
        )
    width = unet.get("cross_attention_dim")
    own: Any = read("text_encoder/config.json").get("hidden_size")
    other: Any = read("text_encoder_2/config.json").get("hidden_size")
    if not all(type(number) is int for number in (width, own, other)) or width != own + other:
        raise Mixed(
            f"unet/config.json reads text of width {short(width)}, but text_encoder/ and"
            f" text_encoder_2/ give {short(own)} and {short(other)}: they belong to different"
            " models, or to an SDXL refiner"
        )


def _check_flux(read: ReadJson) -> None:
    transformer = read("transformer/config.json")
    if transformer.get("guidance_embeds") is not True:
        raise OtherVariant(
            "transformer/config.json has no guidance_embeds: it is FLUX.1 [schnell], which is no"
            " base for training, or a derivative of it"
        )
    for key, component, field in (
        ("joint_attention_dim", "text_encoder_2", "d_model"),
        ("pooled_projection_dim", "text_encoder", "hidden_size"),
    ):
        wanted, found = transformer.get(key), read(f"{component}/config.json").get(field)
        if type(wanted) is not int or wanted != found:
            raise Mixed(
                f"transformer/config.json has {key} {short(wanted)}, but {component}/config.json"
                f" has {field} {short(found)}: they belong to different models"
            )


def _check_width(variant: str, read: ReadJson) -> None:
    name = _denoiser(variant)
    key = "joint_attention_dim" if name == "transformer" else "cross_attention_dim"
    width, wanted = read(f"{name}/config.json").get(key), BASE_MODELS[variant].text_width
    if width in _KNOWN_WIDTHS and width != wanted:
        raise OtherVariant(f"{key} {width} is {_KNOWN_WIDTHS[width]}; {variant} has {wanted}")


def short(value: object) -> str:
    """A hostile value, fit for a message."""
    return "nothing" if value is None else repr(value)[:60]
