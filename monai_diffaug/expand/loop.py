"""The loop over batches: what is missing is made, judged and written; what is bad is said and passed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from .. import registry
from ..primitives.concepts import digest
from ..primitives.filters import Verdict
from ..provenance import Record
from ..types import Backbone, Concept, DiffAugError, NoiseSource, iterate
from .arguments import Recipe, class_of, offers_mask, wants_mask
from .gate import Guarded
from .job import Job, Task
from .making import Product, Source, finish, make, open_source, seed_of, tells_mask
from .planning import Planned

__all__ = ["Judge", "Loop"]

Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]
Judge = Callable[[torch.Tensor, Sequence[str | None]], Sequence[Verdict]]
"""What decides whether an image is kept: filters, or a gate with filters."""
Tried = list[tuple[int, Product, Verdict]]
"""Attempts at one task: seed, product and verdict."""


class Loop:
    """How far a job has come, and what was left out on the way.

    Args:
        job: its folder.
        model: the backbone, with its concepts on.
        plan: what there is to do.
        seed: of the job.
        sieve: judges what is made; ``None`` keeps everything.
        controls: concepts that look at the image.
        attempts: how often an image is made before it is given up.
        strict: raise at the first bad input.
        progress: called with pieces done, pieces in all and the name of the last.
        say: called with one line for each bad input.
    """

    def __init__(
        self,
        job: Job,
        model: Backbone,
        plan: Planned,
        *,
        seed: int = 0,
        sieve: Judge | None = None,
        controls: Sequence[Concept] = (),
        attempts: int = 1,
        strict: bool = False,
        progress: Progress | None = None,
        say: Say | None = None,
    ):
        self.job, self.model, self.plan, self.seed, self.sieve = job, model, plan, seed, sieve
        self.attempts, self.strict, self.progress, self.say = (attempts if sieve else 1), strict, progress, say
        self.controls = tuple(controls)
        self.digest = "+".join([model.digest, *(digest(c)[:16] for c in controls)])
        self.before = job.done(plan.tasks)
        self._past_tasks: set[str] = set()
        for line in plan.skipped.values():
            self._tell(line)

    def run(self) -> None:
        """Go through all batches."""
        for recipe, tasks in self.plan.batches:
            if recipe.method.shape == "expand":
                self.whole(recipe, tasks)
            else:
                self.batch(recipe, tasks)

    # ------------------------------------------------------------------------------------------------- telling

    def _tell(self, line: str) -> None:
        if self.say is not None:
            self.say(line)

    def _skip(self, task: Task, error: DiffAugError) -> None:
        """A bad input: listed, and said once."""
        if self.strict:
            raise error
        if task.item.id not in self.plan.skipped:
            self.plan.skipped[task.item.id] = str(error)
            self._tell(str(error))
        self._past(task)

    def _past(self, *tasks: Task) -> None:
        for task in tasks:
            if task.name not in self._past_tasks:
                self._past_tasks.add(task.name)
                if self.progress is not None:
                    self.progress(len(self._past_tasks), len(self.plan.tasks), task.name)

    # ------------------------------------------------------------------------------------------------- batches

    def batch(self, recipe: Recipe, tasks: Sequence[Task]) -> None:
        """Make what is missing of a batch for an ``edit`` method.

        All of it is computed, so that what comes out is, to the bit, what an unbroken run makes: a batch of another
        size may round differently.
        """
        if all(task.name in self.before for task in tasks):
            self._past(*tasks)
            return
        waiting = self._open(recipe, tasks)
        tried: dict[str, Tried] = {task.name: [] for task, _ in waiting}
        for attempt in range(self.attempts if recipe.draws else 1):
            seeds = [seed_of(self.seed, *task.key, attempt) for task, _ in waiting]
            made = self._make(recipe, waiting, seeds)
            left = []
            for (task, source), seed, product in zip(waiting, seeds, made, strict=True):
                if product is not None and not self._settled(recipe, task, source, tried[task.name], seed, product):
                    left.append((task, source))
            waiting = left
        for task, _ in waiting:
            self._reject(task, tried[task.name])

    def _settled(self, recipe: Recipe, task: Task, source: Source, tried: Tried, seed: int, product: Product) -> bool:
        """Judge an attempt; whether the task needs no other."""
        try:
            tried.append((seed, product, self._judge(source, product)))
        except DiffAugError as error:
            self._skip(task, error)
            return True
        if tried[-1][2].passed:
            self._keep(recipe, task, source, tried)
            return True
        return False

    def whole(self, recipe: Recipe, tasks: Sequence[Task]) -> None:
        """Run an ``expand`` method on the whole data set, once for each copy; each result is judged once."""
        for copy in sorted({task.copy for task in tasks}):
            mine = [task for task in tasks if task.copy == copy]
            if all(task.name in self.before for task in mine):
                self._past(*mine)
                continue
            opened = self._open(recipe, mine)
            seeds = [seed_of(self.seed, *task.key, 0) for task, _ in opened]
            rows = [
                {"image": s.fitted.tensor, "label": self._phrase(t), "id": t.item.id, "seed": seed}
                | ({} if s.mask_fitted is None else {"mask": s.mask_fitted.tensor})
                for (t, s), seed in zip(opened, seeds, strict=True)
            ]
            noise = NoiseSource(seeds)
            samples = registry.call(recipe.method, self.model, rows, **recipe.parameters, generator=noise)
            for n, single in enumerate(single for sample in samples for single in iterate(sample)):
                i = int(single.info.get("source", n))
                (task, source), seed = opened[i], seeds[i]
                tried: Tried = []
                if not self._settled(recipe, task, source, tried, seed, finish(recipe, source, single, None, {})):
                    self._reject(task, tried)

    def _open(self, recipe: Recipe, tasks: Sequence[Task]) -> list[tuple[Task, Source]]:
        opened = []
        for task in tasks:
            try:
                source = open_source(task.item, self.model.contract)
            except DiffAugError as error:
                self._skip(task, error)
                continue
            if wants_mask(recipe) and source.mask_fitted is not None and not bool(source.mask_fitted.tensor.any()):
                self.plan.unchanged.append(f"{task.item.id}, {recipe.name}: its mask is empty")
                self._past(task)
                continue
            opened.append((task, source))
        return opened

    def _make(
        self, recipe: Recipe, waiting: Sequence[tuple[Task, Source]], seeds: Sequence[int]
    ) -> list[Product | None]:
        """A batch; if it fails, its images one by one, so that a bad one is found."""

        def made(part: slice) -> list[Product] | DiffAugError:
            given = [self.plan.given[task.name] for task, _ in waiting[part]]
            sources = [source for _, source in waiting[part]]
            try:
                return guarded(lambda: self._call(recipe, sources, given, seeds[part]))
            except MemoryFull:
                raise
            except DiffAugError as error:
                return error

        together = made(slice(None)) if waiting else []
        if isinstance(together, list):
            return [*together]
        alone = [made(slice(i, i + 1)) for i in range(len(waiting))] if len(waiting) > 1 else [together]
        if len(alone) > 1 and all(isinstance(a, DiffAugError) and str(a) == str(alone[0]) for a in alone):
            raise together  # the settings are at fault, not the images
        for (task, _), result in zip(waiting, alone, strict=True):
            if isinstance(result, DiffAugError):
                self._skip(task, DiffAugError(f"{task.item.image}: {result}"))
        return [a[0] if isinstance(a, list) else None for a in alone]

    def _call(
        self, recipe: Recipe, sources: Sequence[Source], given: Sequence[Mapping[str, Any]], seeds: Sequence[int]
    ) -> list[Product]:
        return make(self.model, recipe, sources, given, seeds, self.controls)

    # ------------------------------------------------------------------------------------------------- results

    def _judge(self, source: Source, product: Product) -> Verdict:
        if self.sieve is None:
            return Verdict(True, {})
        return self.sieve(product.small, [self._kind(source, product)])[0]

    def _kind(self, source: Source, product: Product) -> str | None:
        """The class that a product should show, in the words of the datalist."""
        if product.kind is source.item.kind:
            return class_of(source.item, self.model)
        back = {prompt: kind for kind, prompt in self.plan.classes.items()}
        return back.get(product.kind, product.kind)

    def _phrase(self, task: Task) -> str | None:
        kind = class_of(task.item, self.model)
        return None if kind is None else self.plan.classes.get(kind, kind)

    def _keep(self, recipe: Recipe, task: Task, source: Source, tried: Tried) -> None:
        self._past(task)
        if task.name in self.before:
            return
        self._log_refused(task, tried)
        seed, product, verdict = tried[-1]
        given, kind = self.plan.given[task.name], self._kind(source, product)
        record = Record(
            method=recipe.method.name,
            backbone=self.model.name,
            backbone_digest=self.digest,
            seed=seed,
            parameters=given,
            source=task.item.id,
            prompt=given.get("prompt", recipe.default("prompt")),
            label=kind,
            scores={**product.scores, **verdict.scores},
        )
        record.to_json()  # refuses what JSON cannot hold
        more: dict[str, Any] = {}
        if source.mask is not None:  # for a replay: `mask=`, or primitives.told.with_mask
            used = offers_mask(recipe) or wants_mask(recipe)
            more["mask"] = "parameter" if used else "told" if tells_mask(recipe, self.model) else "unused"
        if len(tried) > 1:
            more["rejected_before"] = [_scored(s, v) for s, _, v in tried[:-1]]
        if product.kind is not source.item.kind:
            labels = self.model.contract.labels
            number = isinstance(source.item.kind, int) and kind in labels
            product = replace(product, kind=labels.index(str(kind)) if number else kind)
        if product.audit:
            self.job.audit(task, product.audit)
        self.job.keep(task, source.scan, product, {**asdict(record), **more})

    def _log_refused(self, task: Task, tried: Tried) -> None:
        """What the gate refused, apart from what goes with the images: it names training images."""
        refused = [{"seed": s, **v.repeats} for s, _, v in tried if isinstance(v, Guarded) and v.repeats is not None]
        if refused:
            self.job.refuse(task, refused)

    def _reject(self, task: Task, tried: Tried) -> None:
        if task.name not in self.before:
            self._log_refused(task, tried)
            self.job.reject(task, [_scored(s, v) for s, _, v in tried])
        self._past(task)


class MemoryFull(DiffAugError):  # noqa: N818 - it is said, not caught, outside this file
    """There is not enough memory for a batch."""


def guarded(call: Callable[[], Any]) -> Any:
    """Turn running out of memory into a line that says what to do."""
    try:
        return call()
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:
        if not ("memory" in str(error) and "alloc" in str(error)):
            raise
    raise MemoryFull("memory ran out: give a smaller batch size, or a smaller backbone")


def _scored(seed: int, verdict: Verdict) -> dict[str, Any]:
    return {"seed": seed, "scores": dict(verdict.scores), "failed": list(verdict.failed)}
