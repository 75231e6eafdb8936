"""Diffusion augmentation in a MONAI pipeline: on the fly, from a pool made before, or on the training device."""

from .array import META_KEY, RandDiffusionAugment
from .bank import RandBankDrawd
from .batch import BatchDiffusionAugment
from .dictionary import RandDiffusionAugmentd

__all__ = ["META_KEY", "BatchDiffusionAugment", "RandBankDrawd", "RandDiffusionAugment", "RandDiffusionAugmentd"]
