"""Is a synthetic image a copy of a training image: in its pixels, its structure, or to a network that knows patients.

Nearest neighbors of which the nearness is judged by real images of other patients (Dar et al. 2024, arXiv:2402.01054;
Pinaya et al. 2022, arXiv:2209.07162): as near as the nearest ``rate`` of these is a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import DiffAugError

__all__ = ["CopyFinder", "Found"]

GRID = 32  # voxels a side that pixels and structure are compared on
REACH = 0.15  # of a side: shifts that are looked for
BATCH = 8

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """What an image is nearest to.

    ``nearest`` is the id of the training image that it is most like in the space where it stands out most; ``scores``
    are its similarities there and in the other spaces (-1 to 1), ``rare`` is the share of real images of other patients
    that come as near in at least one space, and ``copy`` whether that is rarer than the rate allowed.
    """

    nearest: str
    space: str
    scores: dict[str, float]
    rare: float
    copy: bool


class CopyFinder:
    """Compares images with training images in three spaces, also mirrored and shifted.

    ``pixels``: correlation at the best of all shifts up to 15 % of a side, which brightness and contrast do not change.
    ``structure``: the same of edges. ``embedding``: cosine of what ``embed`` makes of both.

    Args:
        train: (N, C, *S), what could have been copied.
        held_out: (M, C, *S) real images of other patients, by which nearness is judged.
        embed: images -> vectors (B, D); without it two spaces are compared.
        ids: of the training images; their positions unless given.
        rate: share of held-out images that may pass for copies.

    Raises:
        DiffAugError: too few held-out images for the rate, or images of another shape.
    """

    def __init__(
        self,
        train: Tensor,
        held_out: Tensor,
        embed: Embed | None = None,
        ids: Sequence[str] | None = None,
        rate: float = 0.02,
    ):
        if len(held_out) < 1 / rate:
            raise DiffAugError(
                f"{len(held_out)} held-out images cannot tell what {rate:.0%} of them is: give {int(1 / rate)} or more"
            )
        if train.shape[1:] != held_out.shape[1:]:
            raise DiffAugError(
                f"training images are {tuple(train.shape[1:])} and held-out ones {tuple(held_out.shape[1:])}: resample "
                "one of them"
            )
        self.embed, self.shape = embed, train.shape[1:]
        self.ids = tuple(str(i) for i in (range(len(train)) if ids is None else ids))
        self._train = self._spaces(train)
        usual = self._nearest(held_out)
        self._usual = {space: values.sort().values for space, (values, _) in usual.items()}
        self.line = float(torch.quantile(self._rare(usual, own=True).amin(0), rate))

    def __call__(self, images: Tensor) -> list[Found]:
        """Compare images (B, C, *S)."""
        if images.shape[1:] != self.shape:
            raise DiffAugError(
                f"images are {tuple(images.shape[1:])}, the training images {tuple(self.shape)}: resample one of them"
            )
        near = self._nearest(images)
        rare, spaces, out = self._rare(near), list(near), []
        for i in range(len(images)):
            space = spaces[int(rare[:, i].argmin())]
            scores = {s: round(float(values[i]), 4) for s, (values, _) in near.items()}
            least = float(rare[:, i].min())
            out.append(Found(self.ids[int(near[space][1][i])], space, scores, least, least < self.line))
        return out

    def _rare(self, near: dict[str, tuple[Tensor, Tensor]], own: bool = False) -> Tensor:
        """Share of held-out images, and of the image itself, that come at least as near: (spaces, B)."""
        rows = []
        for space, (values, _) in near.items():
            usual = self._usual[space]
            nearer = len(usual) - torch.searchsorted(usual, values.contiguous()).float()
            rows.append(nearer / len(usual) if own else (nearer + 1) / (len(usual) + 1))
        return torch.stack(rows)

    def _spaces(self, images: Tensor) -> dict[str, Tensor]:
        """What is compared: spectra of standardized pixels and edges, and unit vectors."""
        small = _standard(_small(images))
        dims = tuple(range(2, images.ndim))
        found = {
            "pixels": torch.fft.rfftn(small, dim=dims),
            "structure": torch.fft.rfftn(_standard(_edges(small)), dim=dims),
        }
        if self.embed is not None:
            with torch.no_grad():
                parts = [self.embed(x).flatten(1).float().cpu() for x in images.split(64)]
            found["embedding"] = F.normalize(torch.cat(parts), dim=-1)
        return found

    def _nearest(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Space -> similarity to the nearest training image (B,) and its position (B,); mirrored if that is nearer."""
        best: dict[str, tuple[Tensor, Tensor]] = {}
        for view in (images, images.flip(-1)):
            for space, value in self._spaces(view).items():
                found = [self._alike(space, x).max(1) for x in value.split(BATCH)]
                alike, where = torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
                if space in best:
                    nearer = alike > best[space][0]
                    where = torch.where(nearer, where, best[space][1])
                    alike = torch.where(nearer, alike, best[space][0])
                best[space] = (alike, where)
        return best

    def _alike(self, space: str, x: Tensor) -> Tensor:
        """Similarity (B, N) of images, as :meth:`_spaces` has them, with all training images."""
        train = self._train[space]
        if space == "embedding":
            return x @ train.T
        dims, n = tuple(range(2, x.ndim)), GRID
        rows = []
        for one in x:
            across = torch.fft.irfftn((train * one.conj()).sum(1, keepdim=True), s=[n] * len(dims), dim=dims)
            reach = int(REACH * n)
            for axis in dims:  # shifts from -reach to reach lie at both ends
                across = torch.cat([across.narrow(axis, 0, reach + 1), across.narrow(axis, n - reach, reach)], axis)
            rows.append(across.flatten(1).amax(1) / (x.shape[1] * n ** len(dims)))
        return torch.stack(rows)


def _small(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x.float(), GRID) if x.ndim == 4 else F.adaptive_avg_pool3d(x.float(), GRID)


def _standard(x: Tensor) -> Tensor:
    dims = tuple(range(1, x.ndim))
    return (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True, correction=0).clamp(min=1e-4)


def _edges(x: Tensor) -> Tensor:
    """Length of the gradient."""
    steps = [x.roll(-1, d) - x.roll(1, d) for d in range(2, x.ndim)]
    return torch.stack(steps).square().sum(0).add(1e-6).sqrt()
