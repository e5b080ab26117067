"""Small texts beside a model: the YAML that older loaders look for, and what a folder remembers of
the single file that it was."""

from __future__ import annotations

import json

from kubebooth_trainer.convert.declared import V_PREDICTION
from kubebooth_trainer.convert.detection import Detected
from kubebooth_trainer.convert.door import Opened
from kubebooth_trainer.convert.models import SIDE

SOURCE = f"{SIDE}/source.json"
"""Prefixes and metadata of the single file that a Diffusers layout came from."""


def source_json(opened: Opened, found: Detected) -> bytes:
    """What is needed to make the same single file again."""
    told = {
        "metadata": dict(sorted(opened.metadata.items())),
        "prefixes": dict(sorted(found.prefixes.items())),
        "version": 1,
    }
    return (json.dumps(told, indent=2, sort_keys=True) + "\n").encode()


def inference_yaml(found: Detected) -> bytes | None:
    """The config in the words of LDM, where no tensor tells the prediction type: of all of Stable
    Diffusion 2, and of Stable Diffusion 1 with v-prediction. None for all others."""
    if found.kind != "Pipeline" or found.layout not in {"sd1", "sd2"}:
        return None
    predicts_v = found.prediction_type == V_PREDICTION
    if found.layout == "sd1" and not predicts_v:
        return None
    second = found.layout == "sd2"
    return _YAML.format(
        parameterization="v" if predicts_v else "eps",
        heads="num_head_channels: 64" if second else "num_heads: 8",
        linear=str(second).lower(),
        width=1024 if second else 768,
        channels=found.in_channels or 4,
        key="crossattn" if found.in_channels in {None, 4} else "hybrid",
        edge=96 if found.variant == "sd21-768" else 64,
        text=_OPENCLIP if second else _CLIP,
    ).encode()


_CLIP = "      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder\n"
_OPENCLIP = """\
      target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder
      params:
        freeze: true
        layer: penultimate
"""
_YAML = """\
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "{parameterization}"
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: {edge}
    channels: 4
    cond_stage_trainable: false
    conditioning_key: {key}
    monitor: val/loss_simple_ema
    scale_factor: 0.18215
    use_ema: false

    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        use_checkpoint: true
        use_fp16: true
        image_size: 32
        in_channels: {channels}
        out_channels: 4
        model_channels: 320
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: [1, 2, 4, 4]
        {heads}
        use_spatial_transformer: true
        use_linear_in_transformer: {linear}
        transformer_depth: 1
        context_dim: {width}
        legacy: false

    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 128
          ch_mult: [1, 2, 4, 4]
          num_res_blocks: 2
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity

    cond_stage_config:
{text}"""
