"""Stable Diffusion XL: two CLIP text encoders, a UNet that knows sizes and crops, epsilon."""

from kubebooth_trainer.families.sdxl.model import load

__all__ = ["load"]
