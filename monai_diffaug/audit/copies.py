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
from .alignment import Candidates, fitted, shortlist

__all__ = ["CopyFinder", "Found"]

CANDIDATES = {2: 12, 3: 2}  # training images that an image is laid over
FINALISTS = 3  # of these, that are laid over it finely
PAIRS = {2: 72, 3: 4}  # that are fitted at once

Embed = Callable[[Tensor], Tensor]
Near = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Found:
    """What an image is nearest to.

    ``nearest`` is the id of the training image that it is most like in the space where it stands out most; ``scores``
    are its similarities there and in the other spaces (-1 to 1), ``rare`` is the share of real images of other patients
    that come as near in at least one space, and ``copy`` whether that is rarer than the rate allowed. ``certain`` says
    that in some space it is more than half the way from the nearest of all those images to equality.
    """

    nearest: str
    space: str
    scores: dict[str, float]
    rare: float
    copy: bool
    certain: bool = False


class CopyFinder:
    """Compares images with training images in three spaces, also mirrored, turned, scaled and moved.

    ``pixels``: correlation with the training image laid over it as well as can be (see :mod:`.alignment`), which
    brightness and contrast do not change. ``structure``: the same of edges. ``embedding``: cosine of what ``embed``
    makes of both.

    Args:
        train: (N, C, *S), what could have been copied.
        held_out: (M, C, *S) real images of other patients, by which nearness is judged.
        embed: images -> vectors (B, D); without it two spaces are compared.
        ids: of the training images; their positions unless given.
        rate: share of held-out images that may pass for copies.
        advance: called with the number of images that were compared, after each few.

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
        advance: Callable[[int], None] | None = None,
    ):
        if not 0 < rate < 1:
            raise DiffAugError(f"a rate of {rate:g} is no share of images: give a number between 0 and 1, such as 0.02")
        if len(held_out) < 1 / rate:
            raise DiffAugError(
                f"{len(held_out)} held-out images cannot tell what {rate:.0%} of them is: give {int(1 / rate)} or more"
            )
        if train.shape[1:] != held_out.shape[1:]:
            raise DiffAugError(
                f"training images are {tuple(train.shape[1:])} and held-out ones {tuple(held_out.shape[1:])}: resample "
                "one of them"
            )
        self.embed, self.shape, self.rate, self.advance = embed, train.shape[1:], rate, advance
        self.ids = tuple(str(i) for i in (range(len(train)) if ids is None else ids))
        self.train, self.candidates = train, Candidates(train)
        self._vectors = None if embed is None else self._embedded(train)
        self.calibrate(self.nearest(held_out))

    def calibrate(self, usual: Near) -> None:
        """Draw the line by what :meth:`nearest` says of real images of other patients."""
        self.usual = usual
        self._sorted = {space: values.sort().values for space, (values, _) in usual.items()}
        self.line = float(torch.quantile(self._rare(usual, own=True).amin(0), self.rate))
        self._certain = {space: (1 + float(values[-1])) / 2 for space, values in self._sorted.items()}

    def __call__(self, images: Tensor) -> list[Found]:
        """Compare images (B, C, *S)."""
        if images.shape[1:] != self.shape:
            raise DiffAugError(
                f"images are {tuple(images.shape[1:])}, the training images {tuple(self.shape)}: resample one of them"
            )
        return self.judged(self.nearest(images))

    def judged(self, near: Near) -> list[Found]:
        """What is found of images whose nearest are known."""
        rare, spaces, out = self._rare(near), list(near), []
        for i in range(rare.shape[1]):
            space = spaces[int(rare[:, i].argmin())]
            scores = {s: round(float(values[i]), 4) for s, (values, _) in near.items()}
            least = float(rare[:, i].min())
            certain = any(float(near[s][0][i]) > self._certain[s] for s in ("pixels", "structure"))
            where = self.ids[int(near[space][1][i])]
            out.append(Found(where, space, scores, least, least < self.line or certain, certain))
        return out

    def _rare(self, near: Near, own: bool = False) -> Tensor:
        """Share of held-out images, and of the image itself, that come at least as near: (spaces, B)."""
        rows = []
        for space, (values, _) in near.items():
            usual = self._sorted[space]
            nearer = len(usual) - torch.searchsorted(usual, values.contiguous()).float()
            rows.append(nearer / len(usual) if own else (nearer + 1) / (len(usual) + 1))
        return torch.stack(rows)

    def _embedded(self, images: Tensor) -> Tensor:
        assert self.embed is not None
        with torch.no_grad():
            parts = [self.embed(x).flatten(1).float().cpu() for x in images.split(64)]
        return F.normalize(torch.cat(parts), dim=-1)

    def nearest(self, images: Tensor) -> Near:
        """Space -> similarity to the nearest training image (B,) and its position (B,); mirrored if that is nearer."""
        dims = images.ndim - 2
        most = min(CANDIDATES[dims], 2 * len(self.train))
        found: dict[str, list[tuple[Tensor, Tensor]]] = {"pixels": [], "structure": []}
        for some in images.split(max(1, PAIRS[dims] // most)):
            views = torch.stack([some, some.flip(-1)])
            near = [shortlist([self.candidates(v[i], most) for v in views], most) for i in range(len(some))]
            where = torch.stack([n[1] for n in near])
            shown = torch.stack([views[n[0], i] for i, n in enumerate(near)])
            kept, alike = fitted(shown, self.train[where], torch.stack([n[2] for n in near]), FINALISTS)
            where = where.gather(1, kept)
            for space, values in alike.items():
                best = values.max(1)
                found[space].append((best.values, where.gather(1, best.indices[:, None])[:, 0]))
            if self.advance is not None:
                self.advance(len(some))
        out = {space: (torch.cat([v for v, _ in f]), torch.cat([w for _, w in f])) for space, f in found.items()}
        if self._vectors is not None:
            both = torch.stack([self._embedded(v) @ self._vectors.T for v in (images, images.flip(-1))]).amax(0)
            out["embedding"] = tuple(both.max(1))
        return out
