"""Images from no image: plain sampling, or a method of shape ``generate``; the folder is that of a job."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..backbones import hub
from ..io import atomic, images
from ..io.datalist import Item
from ..primitives import concepts as taught_by
from ..primitives import guidance, plans
from ..primitives.filters import Sieve, check_limits
from ..primitives.fitting import Fitted, fit
from ..primitives.sampler import sample
from ..registry import Entry
from ..types import Backbone, Concept, Contract, DiffAugError, NoiseSource, Sample, iterate
from .arguments import Recipe, Words, phrase, recipes
from .job import Job, Task
from .loop import Loop, Progress, Say
from .making import Product, Source, batched, finish, numbers_of
from .planning import Planned
from .run import Outcome, ended, opened_concepts, usual_batch

__all__ = ["generate", "plain"]


def plain(
    backbone: Backbone,
    *,
    prompt: str | list[str] | None = None,
    mask: Tensor | None = None,
    vector: Sequence[float] | None = None,
    negative_vector: Sequence[float] | None = None,
    scale: float = 3.0,
    steps: int = 20,
    solver: str = "dpmpp_2m",
    generator: NoiseSource,
) -> Sample:
    """Sample images under a condition, with classifier-free guidance.

    Args:
        backbone: the model.
        prompt: what the images show; ``None`` is the null condition.
        mask: (1 or B, 1, *S) of a lesion, for backbones that take one.
        vector: numbers, for backbones that take them (age, sex, lesion volume); NaN or null for what is not said.
        negative_vector: numbers that guidance leads away from; none said unless given.
        scale: guidance weight.
        steps: of the chain.
        solver: a plan of ``primitives.plans``.
        generator: one seed per image; their number is the number of images.

    Returns:
        ``image`` in the contract's value range; ``mask`` as given.
    """
    n, contract = len(generator), backbone.contract
    plan = plans.make(backbone.schedule, steps, solver)
    told = backbone.condition(n, prompt=prompt, mask=mask, vector=_said(vector))
    negative = None if negative_vector is None else backbone.condition(n, vector=_said(negative_vector))
    weight = scale if told.batch is not None else 1.0
    denoise = guidance.classifier_free(backbone, told, weight, negative=negative, batch=n)
    start = torch.empty(n, contract.latent_channels, *contract.latent_size, device=backbone.device)
    z = sample(denoise, plan[0].level.sigma * generator.normal(start), plan, noise=generator)
    return Sample(backbone.decode(z), label=prompt, mask=mask, prompt=prompt)


def _said(numbers: Sequence[float | None] | None) -> Tensor | None:
    return None if numbers is None else torch.tensor([float("nan") if v is None else float(v) for v in numbers])


PLAIN = Entry(plain, labels="generated")


def generate(
    backbone: str | Path | Backbone,
    out: str | Path,
    prompts: Sequence[str] = (),
    *,
    count: int | Mapping[str, int] = 4,
    method: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    mask: str | Path | None = None,
    seed: int = 0,
    keep: Mapping[str, float] | None = None,
    attempts: int = 4,
    concepts: Sequence[str | Path | Concept] = (),
    precision: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Outcome:
    """Make images of what each of ``prompts`` says, ``count`` of each; resumable like :func:`expand`.

    Args:
        backbone: a name or folder for the hub, or a loaded backbone.
        out: a new folder, or that of the same job begun before.
        prompts: what to show; each of the backbone's classes unless given.
        count: images of each prompt, or prompt -> images, which then are the prompts.
        method: of shape ``generate``; plain sampling unless given.
        parameters: of the method.
        mask: a lesion's mask, for backbones that take one.
        seed: of the job.
        keep: filters; those that compare with real images cannot be used here.
        attempts: how often an image is made before it is given up.
        concepts: files or concepts put on the backbone.
        precision: see :func:`monai_diffaug.backbones.hub.load`.
        device: likewise.
        batch_size: images at once.
        progress: called with pieces done, pieces in all and the name of the last.
        say: called with one line for each failure.

    Raises:
        DiffAugError: the settings cannot work, or the folder cannot be written.
    """
    begin = time.monotonic()
    if isinstance(count, Mapping):
        prompts, least = list(count), min(count.values(), default=0)
    else:
        least = count
    if least < 1 or attempts < 1 or (batch_size is not None and batch_size < 1):
        raise DiffAugError("count, attempts and batch size are counts: give 1 or more")
    model = backbone if isinstance(backbone, Backbone) else hub.load(backbone, precision=precision, device=device)
    with ExitStack() as stack:
        model = stack.enter_context(taught_by.applied(model, *opened_concepts(concepts)))
        (recipe,) = recipes([method or PLAIN], model, parameters, shapes=("generate",))
        check_limits(keep or {}, model)
        size = batch_size or usual_batch(model.contract)
        plan = _planned(model, recipe, prompts, count, size)
        region = None if mask is None else _region(Path(mask), model.contract)
        settings = {
            "format": 1,
            "method": {"name": recipe.method.name, "parameters": dict(recipe.parameters)},
            "prompts": list(plan.classes),
            "mask": None if mask is None else Path(mask).name,
            "backbone": model.name,
            "backbone_digest": model.digest,
            "count": dict(count) if isinstance(count, Mapping) else count,
            "seed": seed,
            "keep": dict(keep or {}),
            "attempts": attempts,
            "precision": str(model.precision).removeprefix("torch."),
            "batch_size": size,
        }
        sieve = Sieve(model, None, keep, plan.classes) if keep else None
        stack.enter_context(atomic.claimed(out))
        loop = _FromNothing(
            Job(out, settings), model, plan, seed=seed, sieve=sieve, attempts=attempts, progress=progress, say=say
        )
        loop.region = region
        loop.run()
        return ended(loop, begin, "")


def _planned(
    model: Backbone, recipe: Recipe, prompts: Sequence[str], count: int | Mapping[str, int], size: int
) -> Planned:
    """One task per image; their item is the prompt."""
    asked = list(prompts)
    if not asked and "prompt" not in recipe.parameters:
        asked = [phrase(label, model) for label in model.contract.labels]
    if not asked and recipe.needs("prompt"):
        raise DiffAugError(f"{recipe.name} wants a prompt: give --prompt")
    plan, words, tasks = Planned(), Words(model), []
    plan.classes = {text: text for text in asked} | {k: phrase(k, model) for k in model.contract.labels}
    back = {prompt: kind for kind, prompt in plan.classes.items()}
    for text in dict.fromkeys(asked) if asked else [None]:
        given = {**recipe.parameters, **({} if text is None else {"prompt": text})}
        words.check(given)
        stem = "_".join(re.findall(r"[\w-]+", text or "image"))
        item = Item(text or "image", Path(), kind=back.get(text, text) if text else None)
        for copy in range(1, (count[str(text)] if isinstance(count, Mapping) else count) + 1):
            task = Task(item, recipe.name, copy, f"{stem}_{copy:04d}")
            plan.given[task.name] = given
            tasks.append(task)
    plan.batches = [(recipe, tasks[i : i + size]) for i in range(0, len(tasks), size)]
    return plan


def _region(path: Path, contract: Contract) -> Tensor:
    """A mask (1, 1, *S) from a file."""
    scan = images.read(path, dims=contract.spatial_dims, orientation=contract.orientation, mask=True)
    axes = "yx" if contract.spatial_dims == 2 else "xy"
    return (fit(scan.image[:1], contract, mask=True, axes=axes).tensor > 0).float()[None]


class _FromNothing(Loop):
    """A job whose sources are black images that say what files to write."""

    region: Tensor | None = None

    def _open(self, recipe: Recipe, tasks: Sequence[Task]) -> list[tuple[Task, Source]]:
        contract = self.model.contract
        scan = images.blank(contract.channels, contract.size, contract.spacing, contract.orientation)
        low, high = contract.value_range
        ends = (0.0, 255.0) if scan.kind == "png" else tuple(contract.extra.get("window", (0.0, 1.0)))
        fitted = Fitted(
            torch.full((contract.channels, *contract.size), low - (high - low)),
            scan.image,
            contract,
            ((float(ends[0]), float(ends[1])),) * contract.channels,
            tuple((0, n) for n in contract.size),
            tuple((i, False) for i in range(contract.spatial_dims)),
        )
        return [(task, Source(task.item, scan, fitted)) for task in tasks]

    def _call(
        self, recipe: Recipe, sources: Sequence[Source], given: Sequence[Mapping[str, Any]], seeds: Sequence[int]
    ) -> list[Product]:
        arguments = batched(recipe, given)
        if self.region is not None:
            arguments["mask"] = self.region.to(self.model.device)
        with torch.no_grad():
            result: Sample = registry.call(recipe.method, self.model, **arguments, generator=NoiseSource(seeds))
        products = []
        for i, (source, single) in enumerate(zip(sources, iterate(result), strict=True)):
            product = finish(recipe, source, single, None, numbers_of(result.info, i, len(sources)))
            audits = result.info.get("audit")
            products.append(replace(product, audit=audits[i]) if audits else product)
        return products
