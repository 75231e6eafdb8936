"""CT at a lower dose, as MONAI transforms: for pairs to learn from, and as an augmentation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform, Transform
from torch import Tensor

from ..primitives.tomography import Scanner, simulated_low_dose
from ..types import DiffAugError

__all__ = ["LowDose", "LowDosed", "RandLowDose", "RandLowDosed"]


def _pixel(image: Any, pixel: float | None) -> float:
    """The width of a pixel in mm: as given, or from a MetaTensor's affine."""
    if pixel is not None:
        return float(pixel)
    if not hasattr(image, "pixdim"):
        raise DiffAugError("the slice does not say how wide its pixels are: give pixel in mm, or load it as MetaTensor")
    return float(image.pixdim[0])


class LowDose(Transform):
    """A CT slice (1, H, W) or volume (1, H, W, D), in Hounsfield units, as a scan at a fraction of its dose shows it.

    See :func:`~monai_diffaug.primitives.tomography.simulated_low_dose`. The same ``seed`` draws the same noise.

    Args:
        dose: fraction of the normal dose.
        pixel: width of a pixel in mm; a MetaTensor's own if None.
        scanner: what the normal dose is.
        seed: of the noise.
    """

    def __init__(self, dose: float = 0.1, pixel: float | None = None, scanner: Scanner | None = None, seed: int = 0):
        self.dose, self.pixel, self.scanner, self.seed = dose, pixel, scanner, seed

    def __call__(
        self, image: Tensor, dose: float | None = None, pixel: float | None = None, seed: int | None = None
    ) -> Tensor:
        """Simulate; what is given here takes the place of what the constructor was given."""
        if image.ndim not in (3, 4) or image.shape[0] != 1:
            raise DiffAugError(f"the CT is {tuple(image.shape)}: give (1, rows, columns) or (1, rows, columns, slices)")
        slices = image.as_subclass(Tensor)[..., None] if image.ndim == 3 else image.as_subclass(Tensor)
        generator = torch.Generator().manual_seed(self.seed if seed is None else int(seed))
        low = simulated_low_dose(
            slices.movedim(-1, 0),
            self.dose if dose is None else float(dose),
            _pixel(image, self.pixel if pixel is None else pixel),
            scanner=self.scanner,
            generator=generator,
        )
        out = image.clone().float()
        out.as_subclass(Tensor).copy_(low.movedim(0, -1).reshape(image.shape))
        return out


class LowDosed(MapTransform):
    """Dictionary form of :class:`LowDose`.

    Args:
        keys: of the CT; to keep the original as well, put ``CopyItemsd`` before.
        dose: as there, or the key of an item's own dose.
        pixel: as there, or the key of an item's own pixel width.
        scanner: as there.
        seed: as there, or the key of an item's own seed.
        allow_missing_keys: as in MONAI.
    """

    def __init__(
        self,
        keys: KeysCollection,
        dose: float | str = 0.1,
        pixel: float | str | None = None,
        scanner: Scanner | None = None,
        seed: int | str = 0,
        allow_missing_keys: bool = False,
    ):
        super().__init__(keys, allow_missing_keys)
        self.told = {"dose": dose, "pixel": pixel, "seed": seed}
        self.transform = LowDose(scanner=scanner)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Simulate every key."""
        out = dict(data)
        told: dict[str, Any] = {k: data[v] if isinstance(v, str) else v for k, v in self.told.items()}
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key], **told)
        return out


def _check_doses(dose: Sequence[float]) -> tuple[float, float]:
    low, high = float(dose[0]), float(dose[-1])
    if not 0 < low <= high:
        raise DiffAugError(f"dose is {tuple(dose)}: give the lowest and the highest fraction, above 0 and in order")
    return low, high


class RandLowDose(RandomizableTransform):
    """At random, a lower dose: the fraction is drawn evenly in its logarithm.

    Args:
        dose: lowest and highest fraction.
        prob: how often.
        pixel: width of a pixel in mm; a MetaTensor's own if None.
        scanner: what the normal dose is.
    """

    def __init__(
        self,
        dose: Sequence[float] = (0.05, 0.5),
        prob: float = 0.1,
        pixel: float | None = None,
        scanner: Scanner | None = None,
    ):
        RandomizableTransform.__init__(self, prob)
        self.range = _check_doses(dose)
        self.transform = LowDose(pixel=pixel, scanner=scanner)
        self._dose, self._seed = self.range[1], 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether, the dose and the noise's seed."""
        super().randomize(None)
        low, high = (math.log(d) for d in self.range)
        self._dose = math.exp(self.R.uniform(low, high))
        self._seed = int(self.R.randint(2**31))

    def __call__(self, image: Tensor, randomize: bool = True) -> Tensor:
        """Simulate, or leave it."""
        if randomize:
            self.randomize()
        return self.transform(image, dose=self._dose, seed=self._seed) if self._do_transform else image


class RandLowDosed(RandomizableTransform, MapTransform):
    """Dictionary form of :class:`RandLowDose`; all keys get the same dose."""

    def __init__(
        self,
        keys: KeysCollection,
        dose: Sequence[float] = (0.05, 0.5),
        prob: float = 0.1,
        pixel: float | None = None,
        scanner: Scanner | None = None,
        allow_missing_keys: bool = False,
    ):
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.transform = RandLowDose(dose, prob, pixel, scanner)

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandLowDosed:
        """As in MONAI."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Simulate every key, or leave all."""
        out = dict(data)
        self.transform.randomize()
        for key in self.key_iterator(out):
            out[key] = self.transform(out[key], randomize=False)
        return out
