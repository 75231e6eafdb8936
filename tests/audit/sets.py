"""Small sets of images of patients, for tests of the audit."""

import torch
import torch.nn.functional as F

from monai_diffaug.audit.recognition import Patients


def bodies(n, seed, dims=2, size=32, each=1):
    """Images that share an outline, as scans of one kind do, and differ in what is inside it; ``each`` of a patient."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, size)] * dims, indexing="ij"))
    outline = torch.sigmoid(20 * (0.8 - grid.square().sum(0).sqrt()))
    mode = "bilinear" if dims == 2 else "trilinear"
    whose = torch.randn(-(-n // each), 1, *[7] * dims, generator=g).repeat_interleave(each, 0)[:n]
    own = torch.randn(n, 1, *[7] * dims, generator=g) if each > 1 else 0
    inside = F.interpolate(0.9 * whose + 0.4 * own if each > 1 else whose, (size,) * dims, mode=mode)
    return (outline * (1 + 0.4 * inside) - 1).clamp(-1, 1)


def people(images, name="p", each=1):
    """Images with a patient for every ``each`` of them."""
    return Patients(
        images,
        tuple(f"{name}{i // each}" for i in range(len(images))),
        tuple(f"{name}{i:03d}.png" for i in range(len(images))),
    )
