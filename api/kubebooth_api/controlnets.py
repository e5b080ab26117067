"""The ControlNets of the catalogue: which file fits which base models, and its preprocessor."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kubebooth_api.door import Door
from kubebooth_api.v1alpha1.base_model import Variant


class ControlNetRow(Door):
    """One ControlNet or adapter. A revision and SHA-256 are known once it has been fetched."""

    name: str
    """Name in `controlNets.names`; unique among those of one variant."""
    variants: tuple[Variant, ...]
    """Variants of base models that it fits."""
    preprocessor: str
    """What makes its picture from an ordinary one; `none` takes the picture as it is."""
    repo: str
    """Repository of a Hugging Face hub, `owner/name`."""
    file: str
    """Path of the safetensors file in the repository."""
    size_bytes_about: Annotated[int, Field(gt=0)] | None = None
    """About how large the file is, to plan volumes by; absent where it is not known."""


_MB = 1_000_000
_SD15 = "comfyanonymous/ControlNet-v1-1_fp16_safetensors"
_T2I = "webui/ControlNet-modules-safetensors"
_SD21 = "thibaud/controlnet-sd21"
_SDXL_SEED = "lllyasviel/sd_control_collection"
_ONLY_FILE = "diffusion_pytorch_model.safetensors"


def _sd15(name: str, stem: str, preprocessor: str) -> ControlNetRow:
    return ControlNetRow(
        name=name,
        variants=("sd15",),
        preprocessor=preprocessor,
        repo=_SD15,
        file=f"control_{stem}_fp16.safetensors",
        size_bytes_about=723 * _MB,
    )


def _t2i(kind: str, preprocessor: str, size_mb: int) -> ControlNetRow:
    return ControlNetRow(
        name=f"t2i-{kind}",
        variants=("sd15",),
        preprocessor=preprocessor,
        repo=_T2I,
        file=f"t2iadapter_{kind}-fp16.safetensors",
        size_bytes_about=size_mb * _MB,
    )


def _sd21(name: str, preprocessor: str, *, stem: str | None = None) -> ControlNetRow:
    return ControlNetRow(
        name=name,
        variants=("sd21-512", "sd21-768"),
        preprocessor=preprocessor,
        repo=_SD21,
        file=f"control_v11p_sd21_{stem or name}.safetensors",
        size_bytes_about=728 * _MB,
    )


def _sdxl(
    name: str, preprocessor: str, repo: str, *, file: str = _ONLY_FILE, size_mb: int | None = 2500
) -> ControlNetRow:
    return ControlNetRow(
        name=name,
        variants=("sdxl",),
        preprocessor=preprocessor,
        repo=repo,
        file=file,
        size_bytes_about=None if size_mb is None else size_mb * _MB,
    )


def _sdxl_t2i(kind: str, preprocessor: str) -> ControlNetRow:
    return _sdxl(
        f"t2i-{kind}",
        preprocessor,
        f"TencentARC/t2i-adapter-{kind}-sdxl-1.0",
        file="diffusion_pytorch_model.fp16.safetensors",
        size_mb=158,
    )


def _flux(
    name: str, preprocessor: str, repo: str, *, file: str = _ONLY_FILE, size_mb: int
) -> ControlNetRow:
    return ControlNetRow(
        name=name,
        variants=("flux-dev",),
        preprocessor=preprocessor,
        repo=repo,
        file=file,
        size_bytes_about=size_mb * _MB,
    )


def _xlabs(kind: str) -> ControlNetRow:
    return _flux(
        kind,
        kind,
        "XLabs-AI/flux-controlnet-collections",
        file=f"flux-{kind}-controlnet-v3.safetensors",
        size_mb=1490,
    )


CONTROL_NETS: tuple[ControlNetRow, ...] = (
    _sd15("canny", "v11p_sd15_canny", "canny"),
    _sd15("depth", "v11f1p_sd15_depth", "depth_midas"),
    _sd15("lineart", "v11p_sd15_lineart", "lineart"),
    _sd15("lineart-anime", "v11p_sd15s2_lineart_anime", "lineart_anime"),
    _sd15("mlsd", "v11p_sd15_mlsd", "mlsd"),
    _sd15("normalbae", "v11p_sd15_normalbae", "normal_bae"),
    _sd15("openpose", "v11p_sd15_openpose", "openpose"),
    _sd15("scribble", "v11p_sd15_scribble", "scribble_pidinet"),
    _sd15("seg", "v11p_sd15_seg", "seg_ofade20k"),
    _sd15("inpaint", "v11p_sd15_inpaint", "inpaint"),
    _sd15("softedge", "v11p_sd15_softedge", "softedge_pidinet"),
    _sd15("ip2p", "v11e_sd15_ip2p", "none"),
    _sd15("shuffle", "v11e_sd15_shuffle", "shuffle"),
    _sd15("tile", "v11f1e_sd15_tile", "tile_resample"),
    _t2i("keypose", "openpose", 155),
    _t2i("seg", "seg_ofade20k", 155),
    _t2i("sketch", "sketch", 154),
    _t2i("depth", "depth_midas", 155),
    _t2i("canny", "canny", 154),
    _t2i("color", "color", 37),
    _t2i("style", "clip_vision", 77),
    _t2i("openpose", "openpose", 155),
    _sd21("canny", "canny"),
    _sd21("depth", "depth_midas"),
    _sd21("hed", "softedge_hed"),
    _sd21("openpose", "openpose", stem="openposev2"),
    _sd21("scribble", "scribble_pidinet"),
    _sdxl("union", "any", "xinsir/controlnet-union-sdxl-1.0"),
    _sdxl(
        "union-promax",
        "any",
        "xinsir/controlnet-union-sdxl-1.0",
        file="diffusion_pytorch_model_promax.safetensors",
    ),
    _sdxl(
        "canny",
        "canny",
        "xinsir/controlnet-canny-sdxl-1.0",
        file="diffusion_pytorch_model_V2.safetensors",
    ),
    _sdxl("openpose", "openpose", "xinsir/controlnet-openpose-sdxl-1.0"),
    _sdxl("depth", "depth_midas", "xinsir/controlnet-depth-sdxl-1.0"),
    _sdxl("scribble", "scribble_pidinet", "xinsir/controlnet-scribble-sdxl-1.0"),
    _sdxl("tile", "tile_resample", "xinsir/controlnet-tile-sdxl-1.0"),
    _sdxl(
        "canny-mid", "canny", _SDXL_SEED, file="diffusers_xl_canny_mid.safetensors", size_mb=None
    ),
    _sdxl(
        "depth-mid",
        "depth_midas",
        _SDXL_SEED,
        file="diffusers_xl_depth_mid.safetensors",
        size_mb=None,
    ),
    _sdxl(
        "sketch-lora", "sketch", _SDXL_SEED, file="sai_xl_sketch_256lora.safetensors", size_mb=774
    ),
    _sdxl(
        "openpose-lora",
        "openpose",
        _SDXL_SEED,
        file="thibaud_xl_openpose_256lora.safetensors",
        size_mb=774,
    ),
    _sdxl(
        "recolor-lora",
        "recolor",
        _SDXL_SEED,
        file="sai_xl_recolor_128lora.safetensors",
        size_mb=396,
    ),
    _sdxl_t2i("canny", "canny"),
    _sdxl_t2i("lineart", "lineart"),
    _sdxl_t2i("sketch", "sketch"),
    _sdxl_t2i("depth-zoe", "depth_zoe"),
    _sdxl_t2i("depth-midas", "depth_midas"),
    _sdxl("t2i-openpose", "openpose", "TencentARC/t2i-adapter-openpose-sdxl-1.0", size_mb=316),
    _flux("union", "any", "InstantX/FLUX.1-dev-Controlnet-Union", size_mb=6600),
    _flux("union-pro", "any", "Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro", size_mb=6600),
    _flux("depth-jasper", "depth_midas", "jasperai/Flux.1-dev-Controlnet-Depth", size_mb=3580),
    _flux("normals", "normal_bae", "jasperai/Flux.1-dev-Controlnet-Surface-Normals", size_mb=3580),
    _flux("upscaler", "none", "jasperai/Flux.1-dev-Controlnet-Upscaler", size_mb=3580),
    _xlabs("canny"),
    _xlabs("depth"),
    _xlabs("hed"),
)


def control_nets_for(variant: str) -> dict[str, ControlNetRow]:
    """ControlNets that fit a variant, by name."""
    return {row.name: row for row in CONTROL_NETS if variant in row.variants}
