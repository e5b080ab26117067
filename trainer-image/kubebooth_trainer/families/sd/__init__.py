"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, epsilon or v_prediction."""

from kubebooth_trainer.families.sd.model import load

__all__ = ["load"]
