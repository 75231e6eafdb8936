"""Is it real? Scores of synthetic against real images, each beside the same score of real against real."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from ..backbones.extractors import DEFAULT, Extractor, extractor
from ..io import images as files
from ..metrics import anatomy, radiomics
from ..metrics.distribution import Floored, fid, fid_infinity, floored, kid
from ..metrics.neighbors import prdc
from ..metrics.similarity import foreground, scales_of, ssim_of
from ..metrics.variety import between_pairs, inception_score, perceptual, vendi
from ..primitives.fitting import fit
from ..types import DiffAugError
from .groups import GroupScore, of_groups
from .images import Pictures, contract_of_size, pictures
from .planes import by_plane, cuts_of, features_of

__all__ = ["Evaluation", "Score", "evaluate"]

Pair = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval, and its floor: the same of real against real images at the same ``n``.

    ``good`` says when it is good: ``low``, ``high``, or ``floor`` for those that should be as real images' are.
    """

    name: str
    value: float
    interval: tuple[float, float]
    floor: float
    floor_interval: tuple[float, float]
    n: int
    extractor: str
    good: str

    @property
    def within_floor(self) -> bool:
        """Whether the value lies within what real images score against each other."""
        low, high = self.floor_interval
        return (
            self.value <= high
            if self.good == "low"
            else self.value >= low
            if self.good == "high"
            else (low <= self.value <= high)
        )


@dataclass(frozen=True)
class Evaluation:
    """All scores of one comparison, and what was compared."""

    real: str
    synthetic: str
    n_real: int
    n_synthetic: int
    dims: int
    size: int
    extractors: tuple[dict[str, str], ...]
    scores: tuple[Score, ...]
    skipped: tuple[str, ...]
    seed: int
    groups: tuple[GroupScore, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Serialize."""
        return {**asdict(self), "scores": [{**asdict(s), "within_floor": s.within_floor} for s in self.scores]}


def _score(name: str, found: Floored, extractor: str, good: str) -> Score:
    return Score(name, found.score, found.interval, found.floor, found.floor_interval, found.n, extractor, good)


def _of_made(score: Callable[[Tensor], float], made: Tensor, _: Tensor) -> float:
    """A score of one set; the floor is then that of real images."""
    return score(made)


def _neighbors(key: str, made: Tensor, real: Tensor) -> float:
    return prdc(made, real, k=min(5, len(made) - 1, len(real) - 1))[key]


def _distances(flat: bool) -> Iterable[tuple[str, Pair, str]]:
    """Name, score and what is good, for sets of features."""
    kind = "" if flat else "_2.5d"
    for name, score, good in (("fid", fid, "low"), ("kid", kid, "low")):
        yield f"{name}{kind}", score if flat else partial(by_plane, score), good
    for key, good in (("precision", "floor"), ("recall", "floor"), ("density", "floor"), ("coverage", "floor")):
        score = partial(_neighbors, key)
        yield f"{key}{kind}", score if flat else partial(by_plane, score), good
    yield f"vendi{kind}", partial(_of_made, vendi), "floor"


def _pairwise_perceptual(found: Extractor, images: Tensor, pairs: int = 48, seed: int = 0) -> float:
    """Mean distance of random pairs; of volumes seen by a 2D network that of like slices of like planes."""
    generator = torch.Generator().manual_seed(seed)
    flat = images.ndim == 4 or found.dims == 3
    pairs = pairs if flat else pairs // 8
    first = torch.randint(len(images), (pairs,), generator=generator)
    second = (first + 1 + torch.randint(len(images) - 1, (pairs,), generator=generator)) % len(images)
    layers = found.layers
    if layers is None:
        raise DiffAugError(f"{found.name} shows no feature maps: give a backbone's judge as extractor")
    a, b = (images[i] if flat else cuts_of(images[i]).flatten(0, 2) for i in (first, second))
    with torch.no_grad():
        return float(perceptual(layers(found.fitted(a)), layers(found.fitted(b))).mean())


def _extrapolated(a: Tensor, b: Tensor, name: str, how: dict[str, Any]) -> list[Score]:
    """FID for any number of images, where halves of whole patients are large enough for a line."""
    try:
        return [_score("fid_infinity", floored(fid_infinity, a, b, **{**how, "draws": 8}), name, "low")]
    except DiffAugError:
        return []


def _by_extractor(found: Extractor, real: Pictures, made: Pictures, how: dict[str, Any]) -> list[Score]:
    flat = real.images.ndim == 4 or found.dims == 3
    a, b = features_of(found, made.images), features_of(found, real.images)
    scores = [_score(n, floored(s, a, b, **how), found.name, g) for n, s, g in _distances(flat)]
    if flat:
        scores += _extrapolated(a, b, found.name, how)
    if found.classify is not None and flat:
        p, q = found.probabilities(made.images), found.probabilities(real.images)
        if p is not None and q is not None:
            kept = floored(partial(_of_made, inception_score), p, q, **how)
            scores.append(_score("inception_score", kept, found.name, "floor"))
    if found.layers is not None:
        kept = floored(
            partial(_of_made, partial(_pairwise_perceptual, found)), made.images, real.images, **{**how, "draws": 8}
        )
        scores.append(_score("perceptual_diversity" + ("" if flat else "_2.5d"), kept, found.name, "floor"))
    return scores


def _by_pixels(real: Pictures, made: Pictures, how: dict[str, Any]) -> list[Score]:
    few = {**how, "draws": 8}
    scores = []
    for name in ("ssim", "ms_ssim"):
        one = partial(_of_made, partial(between_pairs, score=name, pairs=48))
        scores.append(_score(f"{name}_pairs", floored(one, made.images, real.images, **few), "", "floor"))
    a, b = (torch.cat([radiomics.features(x) for x in p.images.split(32)]) for p in (made, real))
    scores.append(_score("frd", floored(radiomics.frd, a, b, **how), "radiomics", "low"))
    return scores


def region_of(images: Tensor) -> str | None:
    """Which region real images (N, C, *S) show, by the default extractor: ``chest``, ``brain``, or neither."""
    flat = images if images.ndim == 4 else images[..., images.shape[-1] // 2]
    asked = extractor(DEFAULT)
    if asked.classify is None:
        return None
    seen = asked.probabilities(flat[:64])
    assert seen is not None
    mean = seen.mean(0).tolist()
    for region in anatomy.REGIONS:
        if sum(p for kind, p in zip(asked.kinds, mean, strict=True) if region in kind) > 0.5:
            return region
    return None


def _by_anatomy(real: Pictures, made: Pictures, how: dict[str, Any], region: str | None) -> list[Score]:
    """How far each measure's distribution lies from real images', in their standard deviations."""
    both = real.masks is not None and made.masks is not None
    seen = [anatomy.measures(p.images, p.masks if both else None, region=region) for p in (made, real)]

    def apart(a: Tensor, b: Tensor) -> float:
        return anatomy.apart(a[:, 0], b[:, 0])

    return [
        _score(f"anatomy_{name}", floored(apart, seen[0][name][:, None], seen[1][name][:, None], **how), "", "low")
        for name in seen[0]
    ]


def _to_source(made: Pictures, size: int, seed: int) -> list[Score]:
    """SSIM of each synthetic image to the real one that it was made of; the floor is that to another's source."""
    known = [(i, s) for i, s in enumerate(made.sources) if s is not None and s.is_file()]
    if len(known) < 4:
        return []
    contract = contract_of_size("", size, made.images[0])
    sources = torch.stack([fit(files.read(s, dims=made.images.ndim - 2).image, contract).tensor for _, s in known])
    own = made.images[[i for i, _ in known]]
    value, other = (ssim_of(own, x, inside=foreground(own, x)) for x in (sources, sources.roll(1, 0)))
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(value), (400, len(value)), generator=generator)
    ends = torch.tensor([0.025, 0.975])
    a, b = (torch.quantile(x[draws].mean(1), ends).tolist() for x in (value, other))
    return [
        Score(
            "ssim_to_source", float(value.mean()), (a[0], a[1]), float(other.mean()), (b[0], b[1]), len(value), "",
            "high",
        )
    ]  # fmt: skip


def evaluate(
    real: str | Path | Pictures,
    synthetic: str | Path | Pictures,
    *,
    extractors: Sequence[Any] = (DEFAULT,),
    size: int = 96,
    dims: int | None = None,
    most: int = 1000,
    draws: int = 20,
    seed: int = 0,
    by: Sequence[str] = (),
    region: str = "auto",
) -> Evaluation:
    """Every score of a set of synthetic images against real ones, with intervals and noise floors.

    Scores are taken on random halves of one size without replacement, the real ones parted by patient.

    Args:
        real: datalist, folder or images; of patients that the generator never saw.
        synthetic: likewise.
        extractors: see :func:`~monai_diffaug.backbones.extractors.extractor`; each gives its own rows.
        size: side that images are fitted to.
        dims: 2 or 3; the first image's unless given.
        most: images of each set at most.
        draws: halves.
        seed: of the halves.
        region: ``chest`` or ``brain``, whose anatomy is measured as well; ``auto`` asks the default extractor, ``none``
            measures what every scan has.
        by: attributes by whose groups quality is told as well, see :func:`~.groups.of_groups`.

    Raises:
        DiffAugError: too few images, unlike dimensions or channels, an unknown extractor or attribute.
    """
    a = synthetic if isinstance(synthetic, Pictures) else pictures(synthetic, size, dims, most)
    b = real if isinstance(real, Pictures) else pictures(real, size, dims, most)
    if a.images.shape[1:] != b.images.shape[1:]:
        raise DiffAugError(
            f"synthetic images are {tuple(a.images.shape[1:])} and real ones {tuple(b.images.shape[1:])}: compare "
            "images of the same dimensions and channels"
        )
    groups = b.patients if len(set(b.patients)) > 1 else None
    how: dict[str, Any] = {"draws": draws, "seed": seed, "groups": groups}
    known = [x if isinstance(x, Extractor) else extractor(x) for x in extractors]
    where = region_of(b.images) if region == "auto" else None if region == "none" else region
    steps: list[Callable[[], list[Score]]] = [partial(_by_extractor, x, b, a, how) for x in known]
    steps += [
        partial(_by_pixels, b, a, how),
        partial(_by_anatomy, b, a, how, where),
        partial(_to_source, a, size, seed),
    ]
    scores = [s for step in track(steps, description="scoring", transient=True) for s in step()]
    by_group = [
        g for name in by for g in of_groups(b, a, name, extractor=known[0], draws=draws, seed=seed, region=where)
    ]
    return Evaluation(
        str(real) if not isinstance(real, Pictures) else "images",
        str(synthetic) if not isinstance(synthetic, Pictures) else "images",
        len(b),
        len(a),
        b.images.ndim - 2,
        int(b.images.shape[2]),
        tuple({"name": x.name, "sha256": x.digest} for x in known),
        tuple(scores),
        (*a.skipped, *b.skipped),
        seed,
        tuple(by_group),
        _notes(b.images),
    )


def _notes(images: Tensor) -> tuple[str, ...]:
    """How scores were taken where that is not the same for all images."""
    side = min(images.shape[2:])
    window, scales = scales_of(side)
    said = [f"SSIM and MS-SSIM are of where there is more than air; MS-SSIM of {scales} scales by windows of {window}"]
    if (window, scales) != (11, 5):
        said[0] += f", since sides are {side} (five scales of 11 take more than 160)"
    if images.ndim == 5:
        said.append("scores named 2.5d are of slices of three planes, since the extractor takes pictures only")
    return tuple(said)
