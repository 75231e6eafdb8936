"""Backbones by name, folder or hub id.

Three layouts are read, all with their contract beside the weights: MONAI's (``network.json``, ``autoencoder.json`` and
safetensors; described at :func:`save`), a diffusers pipeline, and a MONAI bundle (``configs/``, ``models/``).
"""

from __future__ import annotations

from monai_diffaug.backbones.fingerprint import fingerprint
from monai_diffaug.backbones.loading import WEIGHTS, locate, shipped
from monai_diffaug.backbones.loading import load_backbone as load  # a function called load would be taken for MONAI's
from monai_diffaug.backbones.parts import conditioner_from_config
from monai_diffaug.backbones.saving import save, save_guard, seal

__all__ = [
    "WEIGHTS",
    "conditioner_from_config",
    "fingerprint",
    "load",
    "locate",
    "save",
    "save_guard",
    "seal",
    "shipped",
]
