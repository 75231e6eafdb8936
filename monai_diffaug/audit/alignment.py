"""Lays images over the training images that they might be copies of: turned, scaled and moved until they fit best.

A copy that was turned by a few degrees or cropped is less like its original, voxel for voxel, than the scan of another
patient is. Laid over it, its details agree, and those of another patient do not.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Candidates", "correlation", "edges", "fitted", "pooled", "shortlist", "standardized"]

COARSE = 24  # voxels a side that candidates are found on
FINE = {2: (32, 64), 3: (32,)}  # that they are fitted on, one after the other
STEPS = {32: 14, 64: 8}
ANGLES, SCALES = (-0.14, 0.0, 0.14), (-0.09, 0.0, 0.09)  # radians and logarithms that candidates are looked for at
REACH = 0.2  # of a side: shifts that are looked for
LIMITS = (0.26, 0.16, 0.5)  # of angle (rad), logarithm of scale, shift (half sides) in fitting
RATE = 0.015


def pooled(x: Tensor, side: int) -> Tensor:
    """Images (N, C, *S) averaged to at most ``side`` voxels a side."""
    size = [min(side, s) for s in x.shape[2:]]
    return F.adaptive_avg_pool2d(x.float(), size) if x.ndim == 4 else F.adaptive_avg_pool3d(x.float(), size)


def standardized(x: Tensor) -> Tensor:
    """Each of mean 0 and spread 1: brightness and contrast are gone."""
    dims = tuple(range(1, x.ndim))
    return (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True, correction=0).clamp(min=1e-4)


def edges(x: Tensor) -> Tensor:
    """Length of the gradient."""
    steps = [x.roll(-1, d) - x.roll(1, d) for d in range(2, x.ndim)]
    return torch.stack(steps).square().sum(0).add(1e-6).sqrt()


def _matrix(at: Tensor, dims: int) -> Tensor:
    """(P, d, d + 1) for ``F.affine_grid`` of angles, logarithm of scale and shift (P, d (d - 1) / 2 + 1 + d)."""
    turns = dims * (dims - 1) // 2
    skew = at.new_zeros(len(at), dims, dims)
    for n, (i, j) in enumerate(itertools.combinations(range(dims), 2)):
        unit = torch.zeros(dims, dims)
        unit[i, j], unit[j, i] = -1.0, 1.0
        skew = skew + at[:, n, None, None] * unit
    linear = torch.matrix_exp(skew) * at[:, turns, None, None].exp()
    return torch.cat([linear, at[:, turns + 1 :, None]], 2)


def _moved(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Images (P, C, *S) turned, scaled and moved, and where there is image (P, 1, *S)."""
    grid = F.affine_grid(_matrix(at, x.ndim - 2), [len(x), 1, *x.shape[2:]], align_corners=False)
    inside = (grid.abs() <= 1).all(-1)[:, None].float()
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False), inside


def correlation(a: Tensor, b: Tensor, inside: Tensor) -> Tensor:
    """Of images (P, C, *S), where ``inside`` (P, 1, *S) is 1: (P,)."""
    a, b, w = a.flatten(1), b.flatten(1), inside.expand_as(a).flatten(1)
    n = w.sum(1, keepdim=True).clamp(min=1)
    a, b = (a - (w * a).sum(1, keepdim=True) / n) * w, (b - (w * b).sum(1, keepdim=True) / n) * w
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).clamp(min=1e-8).sqrt()


class Candidates:
    """Training images (N, C, *S) on a coarse grid, and which of them an image might be a copy of.

    Images are compared where they overlap at each shift, by Fourier transforms (Padfield 2012, "Masked object
    registration in the Fourier domain", eq. 13 to 25): what was moved out of the frame does not count.
    """

    def __init__(self, train: Tensor):
        self.dims = train.ndim - 2
        small = standardized(pooled(train, COARSE))
        self.size = small.shape[2:]
        self.axes = tuple(range(2, small.ndim))
        reach = [max(1, int(REACH * n)) for n in self.size]
        self.padded = [n + r for n, r in zip(self.size, reach, strict=True)]
        ways = [torch.tensor([*range(r + 1), *range(-r, 0)]) for r in reach]
        grids = torch.meshgrid(*ways, indexing="ij")
        self.where = sum(
            (g % n) * math.prod(self.padded[d + 1 :]) for d, (g, n) in enumerate(zip(grids, self.padded, strict=True))
        ).flatten()
        self.shifts = torch.stack([g.flatten() * 2 / n for g, n in zip(grids, self.size, strict=True)], -1).flip(-1)
        whole = self._spectrum(torch.ones_like(small[:1, :1]))
        self.whole = whole.conj()
        self.spectra = self._spectrum(small)
        self.voxels = self._at_shifts(whole * self.whole)[0] * small.shape[1]
        self.sums = self._at_shifts(self.spectra * self.whole)
        self.squares = self._at_shifts(self._spectrum(small.square()) * self.whole)
        self.views = self._views()

    def _views(self) -> Tensor:
        turns = self.dims * (self.dims - 1) // 2
        pairs = list(itertools.product(ANGLES, SCALES)) if self.dims == 2 else [(0.0, 0.0)]
        views = torch.zeros(len(pairs), turns + 1 + self.dims)
        for n, (angle, scale) in enumerate(pairs):
            views[n, 0], views[n, turns] = angle, scale
        return views

    def _spectrum(self, x: Tensor) -> Tensor:
        return torch.fft.rfftn(x, s=self.padded, dim=self.axes)

    def _at_shifts(self, spectra: Tensor) -> Tensor:
        """Sums over channels and overlap (B, shifts), of products of spectra (B, C, ...)."""
        axes = [a - 1 for a in self.axes]
        return torch.fft.irfftn(spectra.sum(1), s=self.padded, dim=axes).flatten(1)[:, self.where]

    def __call__(self, image: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """The likeliest ``most`` for one image (C, *S): likeness (k,), position (k,), and how to lay them over it."""
        several = image[None].expand(len(self.views), *image.shape)
        seen, _ = _moved(pooled(several, 2 * COARSE), self.views)
        seen = standardized(pooled(seen, COARSE))
        spectra = self._spectrum(seen).conj()
        sums = self._at_shifts(spectra * self.whole.conj())
        squares = self._at_shifts(self._spectrum(seen.square()).conj() * self.whole.conj())
        own = self.squares - self.sums.square() / self.voxels
        found, shifts = [], []
        for one, total, square in zip(spectra, sums, squares, strict=True):
            both = self._at_shifts(self.spectra * one) - self.sums * total / self.voxels
            spread = own * (square - total.square() / self.voxels)
            best = (both / spread.clamp(min=1e-4).sqrt()).max(1)
            found.append(best.values)
            shifts.append(self.shifts[best.indices])
        alike, view = torch.stack(found).max(0)
        top = alike.topk(min(most, len(alike)))
        start = -self.views[view[top.indices]]  # the view was of the image; its inverse is the training image's
        start[:, -self.dims :] = torch.stack(shifts)[view[top.indices], top.indices]
        return top.values, top.indices, start


def fitted(images: Tensor, train: Tensor, start: Tensor, keep: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Lay training images (B, K, C, *S) over images (B, K, C, *S), from ``start`` (B, K, angles + 1 + d).

    Coarsely for all of them, finely for the ``keep`` that then fit best.

    Returns:
        which they are (B, keep), and correlation of ``pixels`` and of edges (``structure``), (B, keep) each, where both
        have image.
    """
    dims = images.ndim - 3
    kept = torch.arange(train.shape[1]).expand(len(images), -1)
    at, out = start, dict[str, Tensor]()
    for side in FINE[dims]:
        if out and side > FINE[dims][0] and min(images.shape[3:]) <= FINE[dims][0]:
            break  # there is nothing finer
        if out and keep < kept.shape[1]:
            best = out["pixels"].topk(keep, 1).indices
            kept, at = kept.gather(1, best), at.gather(1, best[..., None].expand(-1, -1, at.shape[-1]))
        k = kept.shape[1]
        pair = [torch.cat([x[w] for x, w in zip(both, kept, strict=True)]) for both in (images, train)]
        flat, found = _fitted(pair[0], pair[1], at.flatten(0, 1), side)
        at, out = flat.unflatten(0, (-1, k)), {s: v.unflatten(0, (-1, k)) for s, v in found.items()}
    return kept, out


def _fitted(images: Tensor, train: Tensor, start: Tensor, side: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Pairs (P, C, *S) at one resolution, by gradient descent on the correlation."""
    dims = images.ndim - 2
    ends = torch.tensor([LIMITS[0]] * (dims * (dims - 1) // 2) + [LIMITS[1]] + [LIMITS[2]] * dims)
    a, b = (standardized(pooled(x, side)) for x in (images, train))
    at = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([at], RATE * 32 / side)
    for _ in range(STEPS[side]):
        with torch.enable_grad():
            moved, inside = _moved(b, at)
            (gradient,) = torch.autograd.grad(-correlation(a, moved, inside).sum(), at)
        at.grad = gradient
        adam.step()
        with torch.no_grad():
            at.copy_(at.clamp(-ends, ends))
    with torch.no_grad():
        moved, inside = _moved(b, at)
        found = {"pixels": correlation(a, moved, inside), "structure": correlation(edges(a), edges(moved), inside)}
    return at.detach(), found


def shortlist(found: list[tuple[Tensor, Tensor, Tensor]], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest of what several views (as it is, mirrored) found: view (k,), position (k,), start (k, ...)."""
    alike = torch.cat([f[0] for f in found])
    view = torch.cat([torch.full_like(f[1], n) for n, f in enumerate(found)])
    top = alike.topk(min(most, len(alike))).indices
    return view[top], torch.cat([f[1] for f in found])[top], torch.cat([f[2] for f in found])[top]
