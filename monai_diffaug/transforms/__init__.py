"""Diffusion augmentation in a MONAI pipeline: on the fly, from a pool made before, or on the training device."""

from .array import META_KEY, RandDiffusionAugment
from .dictionary import RandDiffusionAugmentd

__all__ = ["META_KEY", "RandDiffusionAugment", "RandDiffusionAugmentd"]
