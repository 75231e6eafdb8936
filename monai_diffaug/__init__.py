"""Diffusion-based data augmentation for medical images, as a MONAI plug-in."""
