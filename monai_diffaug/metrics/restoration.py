"""How near a restored CT slice is to the real one: PSNR, SSIM, bias, over the window and inside the body."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

__all__ = ["bodies", "figures", "flat_regions"]

SPAN = 2.0  # of the value range [-1, 1]
KERNEL = 11  # of SSIM, as in Wang et al. 2004


def bodies(images: Tensor, air: float) -> Tensor:
    """Masks (B, 1, H, W) of the body: the largest piece that is not air, without the table, its lungs filled in.

    Args:
        images: (B, 1, H, W), normal dose.
        air: what lies below is air or lung, in the images' unit (-500 HU).
    """
    import numpy as np
    from scipy import ndimage

    masks = []
    for image in images[:, 0].cpu().numpy():
        opened = ndimage.binary_opening(image > air, iterations=2)
        pieces, n = ndimage.label(opened)
        sizes = np.bincount(pieces.ravel())[1:] if n else np.zeros(0)
        largest = pieces == int(sizes.argmax()) + 1 if n else np.ones_like(opened)
        masks.append(torch.from_numpy(ndimage.binary_fill_holes(largest))[None])
    return torch.stack(masks).to(images.device)


def flat_regions(images: Tensor, inside: Tensor, low: float, high: float, share: float = 0.05) -> Tensor:
    """Masks (B, 1, H, W) of where the normal-dose image is flattest: the ``share`` of the voxels of ``inside`` with
    values from ``low`` to ``high`` (soft tissue) whose 9 x 9 neighborhood varies least.
    """
    mean = F.avg_pool2d(images, 9, 1, 4, count_include_pad=False)
    spread = (F.avg_pool2d(images**2, 9, 1, 4, count_include_pad=False) - mean**2).clamp(min=0)
    allowed = inside & (mean >= low) & (mean <= high)
    masks = []
    for s, a in zip(spread, allowed, strict=True):
        if not bool(a.any()):
            masks.append(torch.zeros_like(a))
            continue
        masks.append(a & (s <= torch.quantile(s[a].float(), share)))
    return torch.stack(masks)


def figures(restored: Tensor, real: Tensor, body: Tensor, flat: Tensor) -> dict[str, list[float]]:
    """One figure a slice of each kind.

    Args:
        restored: (B, 1, H, W) in [-1, 1]; cut off there.
        real: the normal dose, likewise.
        body: masks of the body.
        flat: masks of flat regions; nan where they are empty.

    Returns:
        ``psnr`` and ``ssim`` over the whole slice, ``psnr_body`` and ``ssim_body`` inside the body, in dB and 0 to 1
        (window of 2,000 HU), ``bias``: mean error in the flat regions, in the images' unit.
    """
    x, y = restored.clamp(-1, 1).float(), real.clamp(-1, 1).float()
    error = (x - y) ** 2
    inside = body.flatten(1).float()
    whole = error.flatten(1).mean(1)
    part = (error.flatten(1) * inside).sum(1) / inside.sum(1).clamp(min=1)
    ssim, _ = compute_ssim_and_cs(
        x, y, spatial_dims=2, kernel_size=(KERNEL, KERNEL), kernel_sigma=(1.5, 1.5), data_range=SPAN
    )
    edge = KERNEL // 2
    kept = body[..., edge:-edge, edge:-edge].float()
    still = flat.flatten(1).float()
    bias = ((x - y).flatten(1) * still).sum(1) / still.sum(1)
    return {
        "psnr": (10 * torch.log10(SPAN**2 / whole)).tolist(),
        "psnr_body": (10 * torch.log10(SPAN**2 / part)).tolist(),
        "ssim": ssim.flatten(1).mean(1).tolist(),
        "ssim_body": ((ssim * kept).flatten(1).sum(1) / kept.flatten(1).sum(1).clamp(min=1)).tolist(),
        "bias": bias.tolist(),
    }
