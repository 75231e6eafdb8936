"""Fine-tuning from beginning to end: real images in, a bundle out. It may be killed at any moment and run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones import hub
from ..bundle import StageTrainer
from ..domains.recipe import train_judge
from ..io import atomic, datalist
from ..primitives.runs import Settings
from ..types import Backbone, DiffAugError
from . import privacy
from .autoencoding import fitted_autoencoder
from .cases import Cases, gathered, read
from .measuring import Measure, agreed, batches_of, compared, copied_share, drawn_like, encoded, extractor_of, measure
from .memorizing import Neighbors
from .settings import Ask, Say
from .stage import FinetuneStage, told_of
from .stopping import Rules, Watch
from .trainee import Trainee, adapter_of, trainee
from .writing import Made, checked_target, write_bundle

__all__ = ["Outcome", "finetune"]

DRAWN = 24  # samples a check; more would take longer than the steps between two of them
NOISES = 3  # noise levels at which every held-out image is looked at in a check
CHECKS = 16  # of a run
JUDGED = 16  # training images of a class; with fewer there is no judge


@dataclass(frozen=True)
class Outcome:
    """What a run came to: the bundle, its figures, and why training ended."""

    folder: Path
    figures: Mapping[str, Any]
    stopped: str
    notes: tuple[str, ...]


def finetune(
    backbone: str | Path,
    data: str | Path,
    out: str | Path,
    ask: Ask | None = None,
    *,
    license: str = "",  # noqa: A002
    name: str = "",
    old: str | Path | None = None,
    base: str | Path | None = None,
    device: str | None = None,
    say: Say | None = None,
) -> Outcome:
    """Fine-tune a backbone on one's own images, and write a bundle.

    Args:
        backbone: a name, folder or hub id: a checkpoint of ours, a MONAI bundle, a diffusers pipeline.
        data: a datalist JSON, a folder, or what ``diffaug import`` wrote. Patients are kept apart: see
            :func:`.cases.parted`.
        out: the bundle's folder, new or of the same command; the run lies beside it, in ``OUT.run``.
        ask: how; the defaults unless given.
        license: of the data, which the weights follow; the datalist's own unless given.
        name: of the new backbone; that of its folder unless given.
        old: datalist of the images that the backbone was made from, to measure what it forgot.
        base: folder that the datalist's paths start from.
        device: where the weights go.
        say: called with each remark.

    Raises:
        DiffAugError: anything that the user can mend; nothing is left half-written.
    """
    ask, target, say = ask or Ask(), Path(out), say or (lambda line: None)
    ask.check()
    checked_target(target)
    digest = datalist.digest(item for item, _ in gathered(data, base))
    license = license or datalist.license_of(data)  # noqa: A001
    if not license or license.lower() == "unknown":  # what an import writes that is not told
        raise DiffAugError('weights follow the license of their data: name it, such as --license "CC BY 4.0"')
    model = hub.load(backbone, device=device)
    if "image" in model.conditioner.accepts:
        raise DiffAugError(f"backbone {model.name!r} is told an image, which no datalist gives: train it by its bundle")
    cases, grown = read(data, model, base=base)
    past = None if old is None else read(old, model, grow=False)[0]
    with atomic.claimed(target.with_name(target.name + ".run")) as folder:
        ask.keep(folder / "settings.json", {"backbone_digest": model.digest, "data_digest": digest})
        run = Run(ask, folder, cases, grown, model, past, say)
        for note in cases.notes:
            say(note)
        result, figures = run.walk()
        contract = replace(
            result.contract,
            name=name or target.name,
            license=_license(model.contract.license, license),
            data=f"{model.contract.data or model.name}; fine-tuned on {len(run.train)} images ({license})",
        )
        result = replace(result, name=contract.name, contract=contract)
        made = Made(result, figures, run.shown, folder, str(backbone), license, asdict(ask), cases.notes, run.concept)
        write_bundle(made, target)
        (folder / "secret").unlink(missing_ok=True)
    return Outcome(target, figures, str(figures["stopped"]), cases.notes)


def _license(old: str, new: str) -> str:
    return new if not old or old == new else f"{old}; data of the fine-tuning: {new}"


class Run:
    """One run in its folder: each part is done, or read back if it was done before."""

    def __init__(
        self, ask: Ask, folder: Path, cases: Cases, grown: Backbone, origin: Backbone, old: Cases | None, say: Say
    ):
        self.ask, self.folder, self.cases, self.old, self.say = ask, folder, cases, old, say
        self.origin = origin
        self.train, self.validation, self.test = (cases.part(p) for p in ("train", "validation", "test"))
        self.grown = grown
        self.shown: dict[str, Tensor] = {}
        self.concept: Any = None

    def walk(self) -> tuple[Backbone, dict[str, Any]]:
        """Everything, in order; returns the new backbone and the figures."""
        start, round_trip = fitted_autoencoder(self.grown, self.train, self.validation, self.ask, self.folder, self.say)
        judge = self._judge()
        start = replace(start, judge=judge if judge is not None else start.judge)
        extractor, what = extractor_of(start)
        before = self._kept("before", lambda: measure(start, self.test, extractor, n=self.ask.samples, judge=judge))
        taught = trainee(
            start,
            self.ask.mode,
            rank=self.ask.rank,
            fresh=len(start.contract.labels) - len(self.origin.contract.labels),
            seed=self.ask.seed,
        )
        trained = sum(p.numel() for p in taught.parameters)
        stage, terms = self._trained(taught)
        result = taught.result()
        self.say(stage.watch.why or f"all {stage.settings.steps} steps were taken")
        after = measure(result, self.test, extractor, n=self.ask.samples, judge=judge)
        near = copied_share(after.images, self.train.images, self.test.images)
        self.concept = adapter_of(taught, self.origin, {"alpha": None, "mode": self.ask.mode})
        self._show(before, after, near)
        figures: dict[str, Any] = {
            "mode": self.ask.mode,
            "counts": self.cases.counts(),
            "trained": trained,
            "steps": int(stage.watch.rows[-1]["step"]) if stage.watch.rows else stage.settings.steps,
            "kept_step": stage.watch.best_step or stage.settings.steps,
            "stopped": stage.watch.why,
            "checks": stage.watch.rows,
            "features": what,
            "autoencoder": round_trip,
            "judge_on_real": None if judge is None else agreed(judge, self.test.images, self.test.told["label"]),
            "new": {
                "before": before.summary(),
                "after": after.summary(),
                "kid_gain": compared(before, after, self.test.patients),
            },
            "copies": near["share"],
        }
        if self.old is not None:
            figures["old"] = self._forgotten(result)
        if terms is not None:
            figures["privacy"] = {**asdict(terms), "unit": "patient", "patients": len(set(self.train.patients))}
        result = replace(result, verifier=None)  # it remembers other patients than those trained on now
        private = self.ask.mode == "private"  # the judge has seen the training patients without any noise
        return (replace(result, judge=self.origin.judge) if private else result), figures

    def _forgotten(self, result: Backbone) -> dict[str, Any]:
        """The old kind of image before and after, by the old judge."""
        assert self.old is not None
        judge = self.origin.judge
        extractor, _ = extractor_of(self.origin)
        told, n = self.old, self.ask.samples
        before = self._kept("old", lambda: measure(self.origin, told, extractor, n=n, judge=judge))
        after = measure(result, told, extractor, n=n, judge=judge)
        self.shown |= {"old_before": before.images[:8], "old_after": after.images[:8]}
        gain = compared(before, after, told.patients)
        return {"before": before.summary(), "after": after.summary(), "kid_gain": gain}

    def _kept(self, name: str, make: Any) -> Measure:
        """A measure that an earlier process of the same run may have made."""
        path = self.folder / f"{name}.pt"
        if path.is_file():
            found: Measure = torch.load(path, weights_only=False)  # written by this very run
            return found
        made: Measure = make()
        scratch = path.with_suffix(".part")
        torch.save(made, scratch)
        scratch.replace(path)
        return made

    def _judge(self) -> Any:
        """A classifier of the new data's classes, from training patients, where there are enough."""
        labels = self.train.told.get("label", [])
        names = tuple(n for n in dict.fromkeys(sorted(labels)) if n and labels.count(n) >= JUDGED)
        if len(names) < 2:
            return None
        which = [i for i, n in enumerate(labels) if n in names]
        classes = torch.tensor([names.index(labels[i]) for i in which])
        settings = Settings(steps=min(400, 4 * (self.ask.steps or 400)), batch=16, lr=1e-3, ema=0.98, weight_decay=0.02)
        contract = self.grown.contract
        return train_judge(contract, self.train.images[which], classes, names, settings, self.folder)

    def _trained(self, taught: Trainee) -> tuple[FinetuneStage, privacy.Budget | None]:
        """Walk the stage; afterwards the trainee holds what is kept."""
        model = taught.backbone
        settings = self.ask.training(model.contract, hasattr(model.network.module, "save_pretrained"))
        latents = encoded(model, self.train.images)
        rows = batches_of(self.train, latents, 1)
        shared: dict[str, Any] = {
            "told": told_of(model, self.train, drop=True),
            "held_out": batches_of(self.validation, encoded(model, self.validation.images), 32) * NOISES,
            "watch": Watch(Rules(self.ask.patience, self.ask.memorized)),
            "neighbors": Neighbors(
                self.train.images, self.train.patients, self.validation.images, self.validation.patients
            ),
            "drawer": lambda b: drawn_like(
                b, self.validation, min(DRAWN, self.ask.samples), seed=9000, steps=12, scale=1.0, masks=False
            ),
        }
        every = max(1, settings.steps // settings.log_every // CHECKS)
        if self.ask.mode != "private":
            stage = FinetuneStage(taught, settings, **shared)
            _walk(stage, [_single(r) for r in rows], self.folder, every)
            return stage, None
        patients = len(set(self.train.patients))
        ask, batch = self.ask, self.ask.batch or max(1, min(16, patients // 2))
        terms = privacy.budget(
            patients, settings.steps, batch, epsilon=ask.epsilon, noise=ask.noise, delta=ask.delta, clip=ask.clip
        )
        self.say(
            f"private: epsilon {terms.epsilon:.3g} at delta {terms.delta:.2g} for each of {patients} training patients "
            f"(noise {terms.noise:.3g}, {terms.steps} steps, rate {terms.rate:.3g})"
        )
        shared |= {"neighbors": None, "drawer": None}  # no check decides anything
        private = privacy.PrivateStage(
            taught,
            settings,
            cases=rows,
            patients=self.train.patients,
            terms=terms,
            secret=privacy.secret_of(self.folder),
            **shared,
        )
        _walk(private, [{"image": torch.zeros(1)}], self.folder, every)
        return private, terms

    def _show(self, before: Measure, after: Measure, near: Mapping[str, Any]) -> None:
        """Images for the card; of a private run none that is real."""
        self.shown |= {"before": before.images[:16], "after": after.images[:16]}
        if self.ask.mode == "private":
            return
        order = near["distance"].argsort()[:4].tolist()
        pairs = [x for i in order for x in (after.images[i], self.train.images[near["nearest"][i]])]
        self.shown |= {"real": self.test.spread(8).images, "nearest": torch.stack(pairs)}


def _single(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v[0] for k, v in row.items()}


def _walk(stage: FinetuneStage, rows: list[Any], folder: Path, check_every: int) -> None:
    """Take the steps that are left, unless a rule ended the run before it was killed."""
    where = next(stage.network.module.parameters()).device
    trainer = StageTrainer(stage, rows, folder, device=where, check_every=check_every, stop=stage.stop)
    if stage.watch.why and stage.stop(0, {}):
        stage.finish()
        return
    trainer.run()
