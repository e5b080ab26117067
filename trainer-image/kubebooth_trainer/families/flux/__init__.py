"""FLUX.1 [dev]: T5 and pooled CLIP-L, a transformer with embedded guidance, flow matching."""

from kubebooth_trainer.families.flux.model import load

__all__ = ["load"]
