"""The real images of a study: which patients are labeled, held out, tested; and what a generator is given."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...domains import brain_slices, part_of
from ...io import atomic, datalist, images
from ...primitives import masks as shapes
from ...primitives.regions import moved
from ...types import DiffAugError
from ..images import pictures
from .study import Study

__all__ = ["PARTS", "Pool", "labeled", "pool_of", "real_pools", "written"]

PARTS = ("train", "validation", "test")
READERS = {"brain_lgg_2d": (brain_slices.files, brain_slices.FLAIR)}
LEAST_TEST = 4
TISSUE = -0.6
"""Of [-1, 1]: brighter is tissue, into which a lesion may be moved; as the inpainting network was trained."""


@dataclass(frozen=True)
class Pool:
    """Images to train or test on.

    ``images`` (N, C, S, S) in [-1, 1]; ``labels`` (N,): the class, or whether there is something to outline; ``masks``
    (N, 1, S, S) of 0 and 1, or ``None`` in a study of classes; a patient and the datalist's fields for each.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None
    patients: tuple[str, ...]
    fields: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.images)

    def at(self, which: Sequence[int]) -> Pool:
        """Those at the given positions."""
        index = torch.as_tensor(list(which), dtype=torch.long)
        return Pool(
            self.images[index],
            self.labels[index],
            None if self.masks is None else self.masks[index],
            tuple(self.patients[i] for i in which),
            tuple(self.fields[i] for i in which),
        )

    def of(self, patients: Sequence[str]) -> Pool:
        """Those of some patients."""
        wanted = set(patients)
        return self.at([i for i, p in enumerate(self.patients) if p in wanted])

    def with_targets_of(self, order: Sequence[int]) -> Pool:
        """The same images with the labels and masks of others."""
        other = self.at(order)
        return replace(self, labels=other.labels, masks=other.masks)

    @property
    def digest(self) -> str:
        """SHA-256 of images, labels and masks."""
        h = hashlib.sha256()
        for x in (self.images, self.labels, self.masks):
            h.update(b"-" if x is None else x.contiguous().numpy().tobytes())
        return h.hexdigest()


def joined(a: Pool, b: Pool) -> Pool:
    """Both."""
    masks = None if a.masks is None or b.masks is None else torch.cat([a.masks, b.masks])
    return Pool(
        torch.cat([a.images, b.images]),
        torch.cat([a.labels, b.labels]),
        masks,
        a.patients + b.patients,
        a.fields + b.fields,
    )


def _entries(study: Study, data: Path | None) -> dict[str, list[datalist.Item]]:
    """Items of each part; ``channel`` of the study's data is looked up in :func:`_gray`."""
    told = study.data
    if "reader" in told:
        if told["reader"] not in READERS or data is None:
            what = ", ".join(READERS)
            raise DiffAugError(
                f"the study reads {told['reader']!r}: give the folder that holds it as --data (readers: {what})"
            )
        found = [
            datalist.Item(
                Path(e["image"]).name,
                Path(e["image"]),
                Path(e["mask"]),
                kind=e["class"],
                fields={k: v for k, v in e.items() if k not in ("image", "mask", "class")},
            )
            for e in READERS[told["reader"]][0](data)
        ]
        return {p: [i for i in found if part_of(str(i.fields["patient"])) == p] for p in PARTS}
    if "datalist" not in told:
        raise DiffAugError("the study's 'data' names neither a 'datalist' nor a 'reader': give one")
    path = Path(told["datalist"])
    path = path if path.is_absolute() or data is None else data / path
    sections = datalist.sections(path)
    if "test" in sections:
        return {
            p: datalist.read(path, section=s) if s in sections else []
            for p, s in zip(PARTS, ("training", "validation", "test"), strict=True)
        }
    found = datalist.read(path)
    return {p: [i for i in found if part_of(_patient(i)) == p] for p in PARTS}


def _patient(item: datalist.Item) -> str:
    if item.fields.get("patient") in (None, ""):
        raise DiffAugError(f"{item.id} names no patient: add 'patient' to every entry, since patients are drawn")
    return str(item.fields["patient"])


def _check_patients(parts: Mapping[str, Sequence[datalist.Item]], study: Study) -> None:
    who = {p: {_patient(i) for i in items} for p, items in parts.items()}
    for a, b in (("train", "test"), ("validation", "test"), ("train", "validation")):
        both = sorted(who[a] & who[b])
        if both:
            raise DiffAugError(f"patient {both[0]} is in {a} and in {b}: leave the patient in one of them")
    if len(who["test"]) < LEAST_TEST:
        raise DiffAugError(
            f"{len(who['test'])} test patients are too few for an interval over patients: give {LEAST_TEST} or more"
        )
    most = max((n for n in study.patients if isinstance(n, int)), default=1)
    if len(who["train"]) < most:
        raise DiffAugError(f"the study draws {most} labeled patients and there are {len(who['train'])}: draw fewer")


def written(study: Study, out: Path, data: Path | None = None) -> dict[str, Path]:
    """Write 8-bit copies of the real images, windowed as a generator windows them, and a datalist of each part.

    In a study of classes the datalists name no masks: a generator would otherwise know more than a classifier is told.

    Returns:
        the datalists of ``train``, ``validation``, ``test``, and, if there are masks, ``moved``: lesion-free training
        images with a lesion of their patient moved into tissue.

    Raises:
        DiffAugError: a patient is on both sides, there are too few, or an image cannot be read.
    """
    parts = _entries(study, data)
    _check_patients(parts, study)
    lists = {}
    for part in PARTS:
        lists[part] = out / f"{part}.json"
        if not lists[part].is_file():
            rows = [_copied(study, i, name, out) for i, name in zip(parts[part], datalist.names(parts[part]))]
            datalist.write(lists[part], rows, {"description": f"Real images of {study.name}"})
    if study.task != "classification":
        lists["moved"] = out / "moved.json"
        if not lists["moved"].is_file():
            datalist.write(lists["moved"], _moved(lists["train"], out), {"description": "Lesions moved"})
    return lists


def _copied(study: Study, item: datalist.Item, name: str, out: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"image": f"images/{name}.png", "class": _word(item.kind, study)}
    _save(out / row["image"], _gray(study, item))
    if study.task != "classification":
        if item.mask is None:
            raise DiffAugError(f"{item.id} has no mask: a study of {study.task} wants one for every image")
        row["label"] = f"masks/{name}.png"
        _save(out / row["label"], (images.read(item.mask, dims=2, mask=True).image[0] > 0).float())
    return row | {k: v for k, v in item.fields.items() if k not in row}


def _gray(study: Study, item: datalist.Item) -> Tensor:
    """(H, W) in [0, 1], the percentiles 0.5 and 99.5 at its ends."""
    scan = images.read(item.image, dims=2)
    usual = READERS[study.data["reader"]][1] if "reader" in study.data else 0
    channel = int(study.data.get("channel", usual))
    if not 0 <= channel < len(scan.image):
        raise DiffAugError(f"{item.image} has {len(scan.image)} channels: give a 'channel' below that")
    x = scan.image[channel].float()
    low, high = torch.quantile(x, torch.tensor([0.005, 0.995]))
    return ((x - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def _save(path: Path, x: Tensor) -> None:
    buffer = BytesIO()
    Image.fromarray((x * 255).round().numpy().astype(np.uint8)).save(buffer, "PNG")
    atomic.write_bytes(path, buffer.getvalue())


def _word(kind: Any, study: Study) -> Any:
    """A class by name; in studies of classes it must be one of the study's."""
    if isinstance(kind, int) and not isinstance(kind, bool) and 0 <= kind < len(study.classes) > 1:
        kind = study.classes[kind]
    if study.task == "classification" and kind not in study.classes:
        raise DiffAugError(f"an image is of class {kind!r}, the study has {', '.join(study.classes)}: add it there")
    return kind


def _moved(train: Path, out: Path) -> list[dict[str, Any]]:
    """Each lesion-free image with one of its own patient's lesions moved into tissue, of those that have one."""
    items = datalist.read(train)
    regions = {i.id: (images.read(Path(i.mask), dims=2, mask=True).image[:1] > 0).float() for i in items if i.mask}
    rows = []
    for n, item in enumerate(items):
        own = [
            regions[o.id] for o in items if o.fields["patient"] == item.fields["patient"] and bool(regions[o.id].any())
        ]
        if bool(regions[item.id].any()) or not own:
            continue
        image = images.read(item.image, dims=2).image[:1].float() / 127.5 - 1
        smooth = F.avg_pool2d(image[None], 9, 1, 4)[0]
        allowed = 1 - shapes.grow((smooth <= TISSUE).float()[None], 4)[0]  # not on the rim of the head
        draw = torch.rand(2, generator=torch.Generator().manual_seed(n)).tolist()
        region = moved(own[int(draw[0] * len(own))], allowed, draw[1])
        if not bool(region.any()):
            continue
        name = f"masks/moved_{Path(item.id).stem}.png"
        _save(out / name, region[0])
        rows.append({"image": item.id, "label": name, "class": item.kind, **item.fields})
    return rows


def pool_of(source: Path, study: Study) -> Pool:
    """The images of a datalist as the downstream network sees them."""
    found = pictures(source, study.size, 2)
    if study.task == "classification":
        labels = torch.tensor([study.classes.index(k) for k in found.kinds])
        return Pool(found.images, labels, None, found.patients, found.fields)
    if found.masks is None:
        raise DiffAugError(f"{source} has images without a mask: {study.task} cannot learn from them")
    masks = (found.masks > 0).float()
    return Pool(found.images, masks.flatten(1).any(1).long(), masks, found.patients, found.fields)


def real_pools(lists: Mapping[str, Path], study: Study) -> dict[str, Pool]:
    """Train, validation and test; an empty validation part is an empty pool.

    Raises:
        DiffAugError: the test patients show one class only, or a field of ``groups`` is not there.
    """
    pools = {p: pool_of(lists[p], study) for p in ("train", "test")}
    some = bool(datalist.sections(lists["validation"]))
    pools["validation"] = pool_of(lists["validation"], study) if some else pools["train"].at([])
    kinds = len(study.classes) if study.task == "classification" else 2
    if len(pools["test"].labels.unique()) < kinds:
        raise DiffAugError("the test patients do not show every class: AUROC and the like are not defined there")
    for group in study.groups:
        if any(group not in f for f in pools["test"].fields):
            known = sorted(set.intersection(*(set(f) for f in pools["test"].fields)))
            raise DiffAugError(f"not every image has a {group!r}: choose groups among {', '.join(known)}")
    return pools


def labeled(train: Pool, n: int | str, seed: int) -> list[str]:
    """The labeled patients: with more of them, the same and others.

    Raises:
        DiffAugError: they show one class only.
    """
    everyone = sorted(set(train.patients))
    order = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(1000 + seed)).tolist()
    chosen = [everyone[i] for i in order[: len(everyone) if n == "all" else int(n)]]
    if len(train.of(chosen).labels.unique()) < len(train.labels.unique()):
        raise DiffAugError(f"{n} patients under seed {seed} do not show every class: draw more patients")
    return chosen
