"""Parallel-beam tomography of slices in Hounsfield units, and what a scan at a fraction of the dose would show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import DiffAugError

__all__ = ["WATER", "Scanner", "filtered", "projected", "simulated_low_dose", "smeared"]

WATER = 0.0193
"""Linear attenuation of water per mm at 70 keV, about the mean energy of a 120 kVp beam (Hubbell and Seltzer 1995)."""

AIR = -1000.0


@dataclass(frozen=True)
class Scanner:
    """What the simulated scanner does at the normal dose.

    ``photons`` reach each detector element through air; ``electronic`` is the standard deviation of the electronics'
    noise, in photons, which does not fall with the dose. The tube's current follows the patient's width, view by view:
    it rises with the attenuation to the power of ``modulation`` (1/2 gives the least noise for the dose: Gies et al.
    1999, Med. Phys. 26(11), eq. 11; 0 is a constant current) and is as said behind ``reference`` (28 cm of water).
    ``views`` lie over half a turn; ``cutoff`` is where the Hann window of the reconstruction ends, as a fraction of the
    Nyquist frequency (less is a softer kernel).
    """

    photons: float = 1e5
    electronic: float = 8.0
    modulation: float = 0.5
    reference: float = 5.4
    views: int = 360
    cutoff: float = 1.0


def _angles(views: int) -> list[float]:
    return [math.pi * i / views for i in range(views)]


def _detectors(shape: Sequence[int]) -> int:
    """Elements of one image pixel's width that see the whole slice from any side."""
    return math.ceil(math.hypot(*shape)) | 1


def projected(images: Tensor, views: int = 360) -> Tensor:
    """Line integrals of slices along parallel rays (the Radon transform), by sampling each ray once a pixel.

    Args:
        images: (B, 1, H, W), zero outside; any unit per pixel.
        views: angles over half a turn.

    Returns:
        (B, views, D): D elements one pixel wide, the middle one on the slice's center.
    """
    b, _, h, w = images.shape
    n = _detectors((h, w))
    place = torch.arange(n, dtype=images.dtype, device=images.device) - (n - 1) / 2
    across, along = torch.meshgrid(place, place, indexing="ij")
    rows = []
    for angle in _angles(views):
        c, s = math.cos(angle), math.sin(angle)
        x, y = across * c - along * s, across * s + along * c
        grid = torch.stack([x * 2 / w, y * 2 / h], -1).expand(b, -1, -1, -1)
        rows.append(F.grid_sample(images, grid, padding_mode="zeros", align_corners=False).sum((1, 3)))
    return torch.stack(rows, 1)


def filtered(sinograms: Tensor, cutoff: float = 1.0) -> Tensor:
    """Ramp-filtered projections (B, V, D), with a Hann window that ends at ``cutoff`` of the Nyquist frequency.

    The ramp is the transform of its band-limited kernel, so that the mean of a slice comes out right (Kak and Slaney
    1988, eq. 61 of chapter 3).
    """
    d = sinograms.shape[-1]
    n = 1 << (2 * d - 1).bit_length()
    place = torch.fft.fftfreq(n, 1 / n).to(sinograms)
    kernel = torch.where(place.remainder(2) == 1, -1 / (math.pi * place.clamp(min=1)) ** 2, 0.0)
    kernel = torch.where(place < 0, kernel.flip(0).roll(1), kernel)
    kernel[0] = 0.25
    frequency = torch.fft.rfftfreq(n).to(sinograms) / (0.5 * cutoff)
    window = torch.where(frequency <= 1, 0.5 + 0.5 * torch.cos(math.pi * frequency), 0.0)
    response = torch.fft.rfft(kernel).real * window
    return torch.fft.irfft(torch.fft.rfft(sinograms, n) * response, n)[..., :d]


def smeared(sinograms: Tensor, size: Sequence[int]) -> Tensor:
    """Back-projection (B, 1, H, W) of filtered projections (B, V, D); after :func:`filtered` it undoes them."""
    b, views, d = sinograms.shape
    h, w = size
    y = (torch.arange(h, dtype=sinograms.dtype, device=sinograms.device) - (h - 1) / 2)[:, None]
    x = (torch.arange(w, dtype=sinograms.dtype, device=sinograms.device) - (w - 1) / 2)[None]
    out = sinograms.new_zeros(b, h * w)
    for i, angle in enumerate(_angles(views)):
        t = (x * math.cos(angle) + y * math.sin(angle) + (d - 1) / 2).flatten()
        left = t.floor().clamp(0, d - 2)
        rows = sinograms[:, i]
        a, z = rows.index_select(1, left.long()), rows.index_select(1, left.long() + 1)
        out += torch.lerp(a, z, (t - left).expand_as(a))
    return (out * math.pi / views).reshape(b, 1, h, w)


def simulated_low_dose(
    images: Tensor,
    dose: float | Tensor,
    pixel: float | Tensor,
    *,
    scanner: Scanner | None = None,
    copies: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Slices as a scan at a fraction of the dose would have shown them.

    The slices are projected; the photons that each detector element counts are drawn (Poisson, and the electronics'
    Gaussian noise: Zeng et al. 2015, IEEE Trans. Nucl. Sci. 62(5), eq. 3), and what this changes in the logarithm of
    the counts is reconstructed and added to the slice. So the noise has the scan's texture, streaks along the
    shoulders, the bias where hardly a photon arrives, and the slice keeps its resolution. The slice counts as free of
    noise, which a real one is not.

    Args:
        images: (B, 1, H, W) in Hounsfield units.
        dose: fraction of the scanner's normal dose, one or one a slice (B,).
        pixel: width of a pixel in mm, one or one a slice (B,).
        scanner: what the normal dose is.
        copies: draws a slice; the projections are shared.
        generator: of the draws.

    Returns:
        (copies * B, 1, H, W) in Hounsfield units, copies-major; not cut off.

    Raises:
        DiffAugError: shape, dose or pixel width out of range.
    """
    scanner = scanner or Scanner()
    if images.ndim != 4 or images.shape[1] != 1:
        raise DiffAugError(f"slices are {tuple(images.shape)}: give (batch, 1, rows, columns) in Hounsfield units")
    column = (-1, 1, 1)
    flux = scanner.photons * torch.as_tensor(dose, dtype=torch.float32).reshape(column)
    width = torch.as_tensor(pixel, dtype=torch.float32).reshape(column)
    if bool((flux <= 0).any()) or bool((width <= 0).any()):
        raise DiffAugError("dose and pixel width must be above 0: give a fraction of the normal dose, and mm")
    per_pixel = ((images.float() - AIR) / 1000).clamp(min=0) * WATER * width[..., None]
    clean = projected(per_pixel, scanner.views)
    flux = flux * torch.exp(scanner.modulation * (clean.amax(2, keepdim=True) - scanner.reference))
    noises = []
    for _ in range(copies):
        counts = torch.poisson(flux * torch.exp(-clean), generator=generator)
        counts = counts + scanner.electronic * torch.randn(clean.shape, generator=generator)
        # Readings at or below nothing have no logarithm; scanners put a floor under them as well.
        change = torch.log(flux / counts.clamp(min=1.0)) - clean
        back = smeared(filtered(change, scanner.cutoff), images.shape[2:])
        noises.append(back * 1000 / (WATER * width[..., None]))
    return images.float().repeat(copies, 1, 1, 1) + torch.cat(noises)
