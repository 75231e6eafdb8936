"""The study file: which arms are trained on what, and everything that would make the comparison unfair is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ... import registry
from ...types import DiffAugError

__all__ = ["KINDS", "METRICS", "MIXES", "TASKS", "Arm", "ImageGenerator", "Study", "Training", "opened"]

TASKS = ("classification", "segmentation", "detection")
MIXES = ("mixup", "cutout", "cutmix", "patchshuffle")
CHECKS = ("duplicated", "shuffled", "oracle")
OF_ANOTHER = ("synthetic_only", "pretraining", "shuffled")
KINDS = ("real", "classical", *MIXES, "diffusion", "synthetic_only", "pretraining", *CHECKS)
METRICS: Mapping[str, tuple[str, ...]] = {
    "classification": ("auroc", "balanced_accuracy", "accuracy", "precision", "recall", "f1"),
    "segmentation": ("dice", "iou", "false_positive_area"),
    "detection": ("map", "ap50"),
}
"""Of each task; the first is what tables and curves show."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: its own in the study.
        kind: one of ``KINDS``.
        method: of a diffusion arm: a method that edits or expands, one that generates, or ``generate`` for plain
            sampling by class.
        parameters: of the method.
        backbone: in place of the study's.
        keep: filters, as for ``diffaug expand``.
        learn: a method that learns from the labeled patients alone, run first: ``{"method", "parameters"}``.
        regions: ``own`` gives an image its own mask, ``moved`` gives lesion-free images the lesion of another image
            of their patient, moved into tissue.
        of: the diffusion arm whose images this one uses; also of a diffusion arm, at another ratio.
        classical: whether what it is trained on is augmented as the control's images are.
        ratios: synthetic to real images; the study's unless given.
        patients: how many labeled patients; the study's unless given.
    """

    name: str
    kind: str
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = ""
    keep: Mapping[str, float] = field(default_factory=dict)
    learn: Mapping[str, Any] = field(default_factory=dict)
    regions: str = "own"
    of: str = ""
    classical: bool = True
    ratios: tuple[float, ...] = ()
    patients: tuple[int | str, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether it is trained on more than the labeled images as they are."""
        return self.kind not in ("real", "classical", *MIXES)


@dataclass(frozen=True)
class Training:
    """The same for every arm: steps and their schedule are counted, whatever an arm is trained on.

    ``channels`` are the network's widths, ``pretraining`` the share of the steps that a pre-trained arm spends on
    synthetic images.
    """

    steps: int = 300
    batch: int = 16
    lr: float = 2e-3
    warmup: int = 20
    weight_decay: float = 0.02
    precision: str = "bfloat16"
    channels: tuple[int, ...] = ()
    pretraining: float = 0.5


@dataclass(frozen=True)
class ImageGenerator:
    """What makes the images: a backbone, and of how many patients it was trained (``None``: not known)."""

    backbone: str
    patients_seen: int | None = None


@dataclass(frozen=True)
class Study:
    """A study as its file says it; see ``docs/howto/does_it_help.md``."""

    name: str
    task: str
    data: Mapping[str, Any]
    classes: tuple[str, ...]
    arms: tuple[Arm, ...]
    patients: tuple[int | str, ...]
    generator: ImageGenerator | None = None
    size: int = 64
    ratios: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0, 1, 2)
    groups: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    training: Training = Training()
    draws: int = 2000
    limitations: tuple[str, ...] = ()

    def arm(self, name: str) -> Arm:
        """By name."""
        return next(a for a in self.arms if a.name == name)

    def source_of(self, arm: Arm) -> Arm:
        """The diffusion arm whose images an arm uses; itself, if it makes its own."""
        return self.arm(arm.of) if arm.of else arm

    def patients_of(self, arm: Arm) -> tuple[int | str, ...]:
        """How many labeled patients an arm is trained with."""
        return arm.patients or self.patients

    def ratios_of(self, arm: Arm) -> tuple[float, ...]:
        """Synthetic to real; 0 for arms without synthetic images."""
        return (arm.ratios or self.ratios) if arm.synthetic else (0.0,)

    def to_dict(self) -> dict[str, Any]:
        """Serialize."""
        return asdict(self)


def opened(source: str | Path | Mapping[str, Any]) -> Study:
    """Read a study and refuse it if it cannot be run or would not be fair.

    Args:
        source: a JSON file, or what it holds.

    Raises:
        DiffAugError: the file is unreadable; a key, task, arm, method or metric is unknown; the control is missing.
    """
    if isinstance(source, Mapping):
        raw, where, base = dict(source), "the study", Path()
    else:
        raw, where, base = _json(Path(source)), str(source), Path(source).parent
    arms = raw.pop("arms", None)
    if not isinstance(arms, list) or not all(isinstance(a, dict) for a in arms):
        raise DiffAugError(f"{where} has no list 'arms': give the arms as objects with 'name' and 'kind'")
    training, generator = raw.pop("training", {}), raw.pop("generator", None)
    known = _checked({"name": "study", **raw}, Study, where, {"arms", "training", "generator"})
    study = Study(
        **known,
        arms=tuple(
            Arm(**_checked({"name": a.get("kind", ""), **_found(a, base)}, Arm, f"{where}, an arm")) for a in arms
        ),
        training=Training(**_checked(training, Training, f"{where}, 'training'")),
        generator=None
        if generator is None
        else ImageGenerator(**_checked(_found(generator, base), ImageGenerator, f"{where}, 'generator'")),
    )
    _check_study(study, where)
    _check_arms(study, where)
    metrics = study.metrics or METRICS[study.task]
    return Study(**{**{f.name: getattr(study, f.name) for f in fields(study)}, "metrics": metrics})


def _found(raw: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """A backbone's folder may be given from the study's own."""
    name = str(raw.get("backbone", ""))
    beside = base / name
    return {**raw, "backbone": str(beside)} if name and beside.is_dir() else dict(raw)


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise DiffAugError(f"{path} cannot be read: give a study's JSON file") from None
    except ValueError as error:
        raise DiffAugError(f"{path} is not JSON ({error}): repair it") from None
    if not isinstance(raw, dict):
        raise DiffAugError(f"{path} is no study: give an object with 'task', 'data', 'arms' and so on")
    return raw


def _checked(raw: Mapping[str, Any], kind: Any, where: str, apart: set[str] | None = None) -> dict[str, Any]:
    """Keys of a dataclass, lists as tuples."""
    names = {f.name: f for f in fields(kind) if f.name not in (apart or ())}
    for key in raw:
        if key not in names:
            raise DiffAugError(
                f"{where} has an unknown key {key!r}: {registry.nearest(key, names)}it may have {', '.join(names)}"
            )
    out = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    for name, f in names.items():
        wanted = f.default is f.default_factory  # both are the mark for "none"
        if wanted and name not in out:
            raise DiffAugError(f"{where} has no {name!r}: add it")
    return out


def _check_study(study: Study, where: str) -> None:
    if study.task not in TASKS:
        hint = registry.nearest(study.task, TASKS)
        raise DiffAugError(f"{where}: task {study.task!r} is unknown: {hint}use {', '.join(TASKS)}")
    for metric in study.metrics:
        if metric not in METRICS[study.task]:
            hint = registry.nearest(metric, METRICS[study.task])
            raise DiffAugError(
                f"{where}: {study.task} has no metric {metric!r}: {hint}use {', '.join(METRICS[study.task])}"
            )
    if study.task == "classification" and len(study.classes) < 2:
        raise DiffAugError(f"{where} names {len(study.classes)} classes: a classifier wants two or more")
    if study.task != "classification" and len(study.classes) != 1:
        raise DiffAugError(f"{where}: {study.task} is of one structure: give one class, what the masks outline")
    _check_numbers(study, where)


def _check_numbers(study: Study, where: str) -> None:
    for n in (*study.patients, *(n for a in study.arms for n in a.patients)):
        if n != "all" and (not isinstance(n, int) or n < 1):
            raise DiffAugError(f"{where}: {n!r} patients cannot be drawn: give counts from 1, or 'all'")
    for r in (*study.ratios, *(r for a in study.arms for r in a.ratios)):
        if not isinstance(r, int | float) or r <= 0:
            raise DiffAugError(f"{where}: {r!r} is no ratio of synthetic to real images: give numbers above 0")
    training = study.training
    if not study.patients or not study.seeds or training.steps < 2 or training.batch < 2 or study.draws < 100:
        raise DiffAugError(f"{where} wants patients, seeds, at least 2 steps, a batch of 2 and 100 draws: raise them")
    if not 0 < training.pretraining < 1:
        raise DiffAugError(f"{where}: 'pretraining' is a share of the steps: give a number between 0 and 1")


def _check_arms(study: Study, where: str) -> None:
    names = [a.name for a in study.arms]
    for name in names:
        if names.count(name) > 1:
            raise DiffAugError(f"{where} has two arms called {name!r}: rename one")
    for arm in study.arms:
        if arm.kind not in KINDS:
            raise DiffAugError(
                f"{where}: arm {arm.name!r} is of unknown kind {arm.kind!r}: {registry.nearest(arm.kind, KINDS)}"
                f"use {', '.join(KINDS)}"
            )
    for kind, why in (
        ("classical", "every other arm is compared with it"),
        ("real", "without it nobody sees what augmentation is worth"),
    ):
        if kind not in [a.kind for a in study.arms]:
            raise DiffAugError(f"{where} has no arm of kind {kind!r}: add it, since {why}")
        if [a.kind for a in study.arms].count(kind) > 1 or any(a.patients for a in study.arms if a.kind == kind):
            raise DiffAugError(f"{where}: give one arm of kind {kind!r}, at all numbers of patients of the study")
    for arm in study.arms:
        _check_arm(study, arm, f"{where}: arm {arm.name!r}")


def _check_arm(study: Study, arm: Arm, where: str) -> None:
    made = [a.name for a in study.arms if a.kind == "diffusion" and not a.of]
    if (arm.kind in OF_ANOTHER or arm.of) and arm.of not in made:
        raise DiffAugError(
            f"{where} uses the images of a diffusion arm: give one of {', '.join(made) or 'them'} as 'of'"
        )
    extra = set(arm.patients) - set(study.patients)
    if extra:
        raise DiffAugError(f"{where} wants {', '.join(map(str, extra))} patients, the study does not: add it there")
    if arm.kind != "diffusion" or arm.of:
        return
    if study.generator is None and not arm.backbone:
        raise DiffAugError(f"{where} has no backbone: give the study a 'generator' with one")
    if arm.method != "generate" and registry.get(arm.method).shape == "learn":
        raise DiffAugError(f"{where}: {arm.method} makes no images: give it as 'learn', and a method that uses it")
    if arm.learn and registry.get(str(arm.learn.get("method", ""))).shape != "learn":
        raise DiffAugError(f"{where}: {arm.learn['method']} learns nothing: give a method of shape learn")
    if arm.regions not in ("own", "moved"):
        raise DiffAugError(f"{where}: regions {arm.regions!r} is unknown: use own or moved")
    if study.task != "classification" and arm.method == "generate":
        raise DiffAugError(
            f"{where}: plain sampling makes no masks: use a method that keeps them, such as sdedit with strength 1"
        )
