"""Which pieces of work a job has: batches of tasks, and what each image's method is told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..io import datalist
from ..io.datalist import Item
from ..types import Backbone, DiffAugError
from .arguments import TEXTS, Recipe, Words, class_of, phrase, told
from .job import Task

__all__ = ["Planned", "planned"]


@dataclass
class Planned:
    """Batches in order, what each image's method is told, and what was left out already."""

    batches: list[tuple[Recipe, list[Task]]] = field(default_factory=list)
    given: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> list[Task]:
        """All of them, in order."""
        return [task for _, batch in self.batches for task in batch]


def planned(
    items: Sequence[Item], named: Sequence[Recipe], model: Backbone, copies: int, size: int, strict: bool
) -> Planned:
    """Batches of tasks whose arguments go together. They do not depend on what is done already."""
    plan, words, names = Planned(), Words(model), datalist.names(items)
    kinds = [k for k in (class_of(i, model) for i in items) if k is not None]
    plan.classes = {k: phrase(k, model) for k in dict.fromkeys([*model.contract.labels, *kinds])}
    for recipe in named:
        alike: dict[str, list[Task]] = {}
        for item, name in zip(items, names, strict=True):
            try:
                given, unchanged = told(recipe, model, item)
                words.check(given)
            except DiffAugError as error:
                if strict:
                    raise
                plan.skipped.setdefault(item.id, str(error))
                continue
            if unchanged:
                plan.unchanged.append(f"{item.id}, {recipe.name}: {unchanged}")
                continue
            shared = {k: ("text" if k in TEXTS and isinstance(v, str) else v) for k, v in given.items()}
            group = alike.setdefault(json.dumps([item.mask is None, shared], sort_keys=True, default=repr), [])
            for copy in range(1, (copies if recipe.draws else 1) + 1):
                task = Task(item, recipe.name, copy, f"{name}_{recipe.name}_{copy}")
                plan.given[task.name] = given
                group.append(task)
        if copies > 1 and alike and not recipe.draws:
            plan.unchanged.append(f"{recipe.name} draws nothing: one copy of each image is all there is")
        for group in alike.values():
            group.sort(key=lambda task: task.copy)  # stable: all images once, then all once more
            step = len(group) if recipe.method.shape == "expand" else size
            plan.batches += [(recipe, group[i : i + step]) for i in range(0, len(group), step)]
    if not plan.batches:
        raise DiffAugError([*plan.skipped.values(), *plan.unchanged, "there is nothing to do"][0])
    return plan
