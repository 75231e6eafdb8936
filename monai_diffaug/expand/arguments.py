"""What a method is told about each image: by the user's parameters, the datalist, else the image's class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any

from .. import registry
from ..io.datalist import Item
from ..registry import Entry
from ..types import Backbone, DiffAugError

__all__ = ["TEXTS", "Recipe", "Words", "class_of", "offers_mask", "phrase", "recipes", "told", "wants_mask"]

TEXTS = ("prompt", "source_prompt", "label")
"""Parameters that are told for each image on its own."""

_SHAPES = {
    "learn": "it makes no images: run `diffaug learn` first and give the file of what it learned as a concept",
    "generate": "it starts from no image: use `diffaug generate`",
}


@dataclass(frozen=True)
class Recipe:
    """A method and its parameters, under a name that is its own in the job."""

    name: str
    method: Entry
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def draws(self) -> bool:
        """Whether the method draws noise: a deterministic one does without a generator, and a copy is a copy."""
        return self.needs("generator")

    def takes(self, parameter: str) -> bool:
        """Whether the method has the parameter."""
        return parameter in self.method.signature.parameters

    def needs(self, parameter: str) -> bool:
        """Whether the method cannot do without it."""
        return self.takes(parameter) and self.method.signature.parameters[parameter].default is Parameter.empty

    def default(self, parameter: str) -> Any:
        """What the method takes unless told."""
        known = self.method.signature.parameters.get(parameter)
        return None if known is None or known.default is Parameter.empty else known.default


def recipes(
    methods: Iterable[str | Entry | tuple[str, Mapping[str, Any]]],
    backbone: Backbone,
    parameters: Mapping[str, Any] | None = None,
    shapes: Sequence[str] = ("edit", "expand"),
) -> list[Recipe]:
    """The job's methods, checked against the backbone.

    Args:
        methods: names, or names with parameters of their own.
        backbone: what they run on.
        parameters: ``key``, for all methods that have it, or ``method.key``, for one.
        shapes: of methods that will do.

    Raises:
        DiffAugError: a method is unknown, of another shape, or wants what the backbone lacks; a parameter is no
            method's.
    """
    named: list[tuple[str | Entry, dict[str, Any]]] = []
    for m in methods:
        named.append((m[0], dict(m[1])) if isinstance(m, tuple) else (m, {}))
    if not named:
        raise DiffAugError("no method was given: name one (`diffaug list` shows all)")
    shared = dict(parameters or {})
    used: set[str] = set()
    out: list[Recipe] = []
    for name, own in named:
        entry = registry.get(name)
        if entry.shape not in shapes:
            raise DiffAugError(f"{entry.name} cannot be used here: {_SHAPES.get(entry.shape, 'it wants an image')}")
        for key, value in sorted(shared.items(), key=lambda pair: "." not in pair[0]):  # what is for one method first
            prefix, _, last = key.rpartition(".")
            if prefix in ("", name, entry.name) and last in registry.parameters(entry):
                own.setdefault(last, value)
                used.add(key)
        registry.check(entry, backbone, own)
        n = 1 + sum(r.method.name == entry.name for r in out)
        out.append(Recipe(entry.name if n == 1 else f"{entry.name}{n}", entry, own))
    for key in set(shared) - used:
        known = sorted({p for r in out for p in registry.parameters(r.method)})
        raise DiffAugError(
            f"{' and '.join(r.name for r in out)} has no parameter {key!r}: "
            f"{registry.nearest(key.rpartition('.')[2], known)}it takes {', '.join(known)}"
        )
    return out


def class_of(item: Item, backbone: Backbone) -> str | None:
    """The image's class in words: a number is a position among the backbone's labels."""
    kind, labels = item.kind, backbone.contract.labels
    if isinstance(kind, list) and len(kind) == 1:
        kind = kind[0]
    if isinstance(kind, bool) or not isinstance(kind, int | str):
        return None
    if isinstance(kind, int):
        return labels[kind] if 0 <= kind < len(labels) else None
    return kind or None


def phrase(kind: str, backbone: Backbone) -> str:
    """The prompt for a class."""
    return str(getattr(backbone.conditioner, "template", "{}")).format(kind)


def told(recipe: Recipe, backbone: Backbone, item: Item) -> tuple[dict[str, Any], str]:
    """Arguments for one image (those of tensors excepted), and why the method would not change it, if so.

    Raises:
        DiffAugError: the method must be told something that neither the user nor the datalist says.
    """
    kind = class_of(item, backbone)
    own = {k: _filled(v, item, kind) for k, v in recipe.parameters.items()}
    if recipe.takes("source_prompt") and "source_prompt" not in own and kind is not None:
        own["source_prompt"] = phrase(kind, backbone)
    if recipe.takes("label") and not {"label", "prompt"} & set(own) and kind is not None and _knows(kind, backbone):
        own["label"] = kind
    elif recipe.takes("prompt") and "prompt" not in own:
        prompt = _prompt(recipe, backbone, item, kind)
        if prompt is not None:
            own["prompt"] = prompt
    for key in TEXTS:
        if recipe.needs(key) and own.get(key) is None:
            raise DiffAugError(
                f"{item.id}: {recipe.name} wants a {key} and the datalist gives no class for it: give --param {key}=..."
            )
    mask = recipe.needs("mask") or own.pop("mask", None) == "label"
    if mask and item.mask is None:
        raise DiffAugError(f"{item.id}: {recipe.name} wants a mask and the datalist has none: add it as 'label'")
    reached = own.get("prompt", recipe.default("prompt"))
    same = kind is not None and reached in (kind, phrase(kind, backbone))
    if recipe.method.labels == "replaced" and same and not mask:
        return own, f"it shows {kind!r} already"
    return own, ""


def wants_mask(recipe: Recipe) -> bool:
    """Whether an image's mask goes to the method: it must, or the user says ``mask=label``."""
    return recipe.needs("mask") or recipe.parameters.get("mask") == "label"


def offers_mask(recipe: Recipe) -> bool:
    """Whether an image's mask goes to the method if there is one: it asks for the label and its mask."""
    return recipe.takes("mask") and recipe.takes("label") and not recipe.needs("mask")


def _knows(kind: str, backbone: Backbone) -> bool:
    """Whether the class may be told by its name: it is one of the backbone's, or words were learned for classes."""
    conditioner = backbone.conditioner
    return bool(getattr(conditioner, "learned", ())) or (
        "label" in conditioner.accepts and kind in backbone.contract.labels
    )


def _prompt(recipe: Recipe, backbone: Backbone, item: Item, kind: str | None) -> str | None:
    if item.fields.get("prompt"):
        return str(item.fields["prompt"])
    if recipe.default("prompt") or "prompt" not in backbone.conditioner.accepts or kind is None:
        return None
    if not recipe.takes("source_prompt"):
        return phrase(kind, backbone)
    others = [label for label in backbone.contract.labels if label != kind]
    if len(others) == 1:  # a change from what is there to the one thing else that it could be
        return phrase(others[0], backbone)
    raise DiffAugError(
        f"{item.id}: {recipe.name} changes {kind!r} into something else: say what with --param prompt=... "
        "({class} stands for the image's class)"
    )


def _filled(value: Any, item: Item, kind: str | None) -> Any:
    """``{class}`` and the datalist's other keys filled into a text."""
    if not isinstance(value, str) or "{" not in value:
        return value
    known = {**item.fields, **({"class": kind} if kind is not None else {})}
    try:
        return value.format_map(known)
    except (KeyError, IndexError, ValueError):
        raise DiffAugError(
            f"{item.id}: {value!r} cannot be filled in: the datalist has {', '.join(known) or 'no keys'} for it"
        ) from None


class Words:
    """Refuses words and classes that the backbone does not know, before any work."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self._learned = bool(getattr(backbone.conditioner, "learned", ()))
        self._known: dict[tuple[str, str], DiffAugError | None] = {}

    def check(self, given: Mapping[str, Any]) -> None:
        """Encode each prompt and label once.

        Raises:
            DiffAugError: the conditioner's own, which names what is near.
        """
        accepts = self.backbone.conditioner.accepts
        for key in TEXTS:
            kind, value = ("label" if key == "label" else "prompt"), given.get(key)
            if not isinstance(value, str) or kind not in accepts or (kind == "label" and self._learned):
                continue
            if (kind, value) not in self._known:
                try:
                    self.backbone.condition(1, **{kind: [value] if kind == "label" else value})
                    self._known[kind, value] = None
                except DiffAugError as error:
                    self._known[kind, value] = error
            refused = self._known[kind, value]
            if refused is not None:
                raise refused
