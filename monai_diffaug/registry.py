"""Methods by name: the decorator, discovery, and the checks made before a method's first step."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from .types import Backbone, Concept, DiffAugError

__all__ = ["Entry", "call", "cite", "get", "listing", "method", "nearest", "parameters"]

ENTRY_POINT = "monai_diffaug.plugins"
LABELS = ("kept", "moved", "replaced", "generated")
_JOURNAL = re.compile(
    r"Journal|Transactions|Nature|Science|Radiology|Analysis|Letters|IEEE T|TMI|TPAMI|TMLR|JMLR|IJCV|MedIA|MELBA"
)
_METHODS: dict[str, Entry] = {}
_ALIASES: dict[str, str] = {}
_BROKEN: dict[str, str] = {}
_discovered = False


def _escaped(sign: re.Match[str]) -> str:
    return f"\\{sign.group()}"


@dataclass(frozen=True)
class Entry:
    """A method as the registry knows it.

    ``needs`` are words of :meth:`Backbone.offers`; ``labels`` says what becomes of an image's label: ``kept``,
    ``moved`` with the layout, ``replaced`` or ``generated``; under ``neutral`` nothing may change; ``dims`` are the
    spatial dimensions.
    """

    function: Callable[..., Any]
    labels: str
    aliases: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    neutral: Mapping[str, Any] | None = None
    dims: tuple[int, ...] = (2, 3)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The method's name in the literature, which is its file's and its function's name."""
        return self.function.__name__

    @cached_property
    def signature(self) -> inspect.Signature:
        """The configuration."""
        return inspect.signature(self.function)

    @property
    def shape(self) -> str:
        """``generate``, ``edit``, ``learn`` or ``expand``, told by the signature."""
        names = self.signature.parameters
        for word, shape in (("dataset", "expand"), ("images", "learn"), ("image", "edit")):
            if word in names:
                return shape
        return "learn" if self.signature.return_annotation in ("Concept", Concept) else "generate"

    @property
    def file(self) -> Path:
        """Where it lives."""
        return Path(inspect.getsourcefile(self.function) or "?")

    @property
    def line(self) -> int:
        """The function's first line in its file."""
        return inspect.getsourcelines(self.function)[1]

    @property
    def heading(self) -> str:
        """Its place in the survey, such as ``semantic/layout``: the folder."""
        parts = self.function.__module__.split(".")
        return "/".join(parts[2:-1]) if parts[:2] == ["monai_diffaug", "methods"] else parts[0]

    @cached_property
    def card(self) -> dict[str, str]:
        """The module docstring's ``Paper``, ``Idea``, ``Changes`` and ``Departs``."""
        text = inspect.getdoc(inspect.getmodule(self.function)) or ""
        found = re.findall(r"^(Paper|Idea|Changes|Departs):[ ]*(.*?)(?=^\w+:|\Z)", text, re.M | re.S)
        return {key: " ".join(value.split()) for key, value in found}

    @property
    def bibtex(self) -> str:
        """The card's paper as a BibTeX entry."""
        paper = self.card.get("Paper", "")
        arxiv = re.search(r"arXiv:\s*(\d{4}\.\d{4,5})", paper)
        # Authors. Title. Venue year. A full stop after an initial ends nothing.
        text = re.sub(r"\s*arXiv:\s*\S+", "", paper).strip().rstrip(".")
        authors, title, venue = [*re.split(r"(?<!\b[A-Z])\.\s+", text, maxsplit=2), "", ""][:3]
        if not venue and "? " in title:  # a title may end in a question mark
            title, venue = (part.strip() for part in title.replace("? ", "?\0").rsplit("\0", 1))
        year = re.findall(r"\b(?:19|20)\d\d\b", venue) or ([f"20{arxiv.group(1)[:2]}"] if arxiv else [])
        names = re.split(r",\s*(?:and\s+)?|\s+and\s+", re.sub(r",?\s+et al\.?$", ", others", authors))
        kind = "misc" if not venue else "article" if _JOURNAL.search(venue) else "inproceedings"
        fields = {
            "title": f"{{{title}}}",  # twice in braces: its capitals stay
            "author": " and ".join(f"{{{n}}}" if re.search(r"[^.] ", n) else n for n in names),
            {"article": "journal", "inproceedings": "booktitle"}.get(kind, "note"): venue,
            "year": year[-1] if year else "",
            "eprint": arxiv.group(1) if arxiv else "",
            "archiveprefix": "arXiv" if arxiv else "",
        }
        lines = [f"  {key} = {{{re.sub(r'([&%#_$])', _escaped, value)}}}," for key, value in fields.items() if value]
        return "\n".join([f"@{kind}{{{self.name},", *lines, "}"])

    def __call__(self, backbone: Backbone, *args: Any, **kwargs: Any) -> Any:
        """Run it, after the checks of :func:`call`."""
        return call(self, backbone, *args, **kwargs)


def method(
    *,
    labels: str,
    aliases: Iterable[str] = (),
    needs: Iterable[str] = (),
    neutral: Mapping[str, Any] | None = None,
    dims: Iterable[int] = (2, 3),
    **extra: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a method; the function itself is returned unchanged.

    Raises:
        DiffAugError: the name or an alias is taken; the message names both files.
    """
    if labels not in LABELS:
        raise DiffAugError(f"labels={labels!r} is unknown: use one of {', '.join(LABELS)}")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        entry = Entry(function, labels, tuple(aliases), tuple(needs), neutral, tuple(dims), extra)
        for name in (entry.name, *entry.aliases):
            other = _METHODS.get(_ALIASES.get(name, name))
            if other is not None and (other.function.__module__, other.name) != (function.__module__, entry.name):
                raise DiffAugError(f"method name {name!r} is taken twice, by {other.file} and {entry.file}: rename one")
        _METHODS[entry.name] = entry
        _ALIASES.update(dict.fromkeys(entry.aliases, entry.name))
        return function

    return register


def _discover() -> None:
    global _discovered
    if _discovered:
        return
    _discovered = True
    from . import methods

    for module in pkgutil.walk_packages(methods.__path__, methods.__name__ + "."):
        if not module.ispkg:
            importlib.import_module(module.name)
    for point in entry_points(group=ENTRY_POINT):
        load_plugin(point.name, point.load)


def load_plugin(name: str, load: Callable[[], Any]) -> None:
    """Import one plug-in. One that fails is warned about and passed over; the rest goes on."""
    before = dict(_METHODS), dict(_ALIASES)
    try:
        load()
    except Exception as error:
        _METHODS.clear()
        _METHODS.update(before[0])
        _ALIASES.clear()
        _ALIASES.update(before[1])
        _BROKEN[name] = f"{type(error).__name__}: {error}"
        warnings.warn(f"plug-in {name!r} was passed over: {_BROKEN[name]}", stacklevel=2)


def broken() -> dict[str, str]:
    """Plug-ins that could not be loaded, and why."""
    _discover()
    return dict(_BROKEN)


def listing(pattern: str = "*") -> list[Entry]:
    """All methods whose name, alias or heading matches a wildcard pattern, by heading and name."""
    _discover()
    pattern = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    hit = [m for m in _METHODS.values() if any(fnmatch.fnmatch(n, pattern) for n in (m.name, m.heading, *m.aliases))]
    return sorted(hit, key=lambda m: (m.heading, m.name))


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'? `` or nothing."""
    near = difflib.get_close_matches(word, list(known), 1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def get(name: str | Entry) -> Entry:
    """The method called ``name`` (or an alias of it).

    Raises:
        DiffAugError: there is none; the message names the nearest.
    """
    if isinstance(name, Entry):
        return name
    _discover()
    key = _ALIASES.get(name, name)
    if key not in _METHODS:
        hint = nearest(name, [*_METHODS, *_ALIASES])
        raise DiffAugError(f"there is no method {name!r}: {hint}`diffaug list` shows all")
    return _METHODS[key]


def cite(names: Iterable[str]) -> str:
    """BibTeX of the methods named."""
    return "\n\n".join(get(n).bibtex for n in names)


def parameters(name: str | Entry) -> dict[str, inspect.Parameter]:
    """A method's own keyword parameters: all but the backbone, the data and the generator."""
    skip = {"backbone", "image", "images", "dataset", "generator"}
    return {k: p for k, p in get(name).signature.parameters.items() if k not in skip}


def check(name: str | Entry, backbone: Backbone, given: Iterable[str] = ()) -> Entry:
    """Refuse, before any work, a call that cannot succeed.

    Raises:
        DiffAugError: the backbone lacks what the method needs or has other dimensions, or a parameter is unknown.
    """
    entry = get(name)
    missing = sorted(set(entry.needs) - backbone.offers())
    if missing:
        raise DiffAugError(
            f"{entry.name} needs {', '.join(missing)}, which backbone {backbone.name!r} does not offer: "
            f"choose another backbone (it offers {', '.join(sorted(backbone.offers())) or 'nothing'})"
        )
    if backbone.contract.spatial_dims not in entry.dims:
        raise DiffAugError(
            f"{entry.name} works in {' and '.join(f'{d}D' for d in entry.dims)}, "
            f"backbone {backbone.name!r} is {backbone.contract.spatial_dims}D: choose another of the two"
        )
    known = entry.signature.parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for key in given:
        if key not in known and not takes_any:
            raise DiffAugError(
                f"{entry.name} has no parameter {key!r}: {nearest(key, known)}it takes {', '.join(parameters(entry))}"
            )
    return entry


def call(name: str | Entry, backbone: Backbone, *args: Any, **kwargs: Any) -> Any:
    """Check and run a method. ``image`` is checked against the backbone's contract."""
    entry = check(name, backbone, kwargs)
    bound = entry.signature.bind_partial(backbone, *args, **kwargs)
    missing = [
        k
        for k, p in entry.signature.parameters.items()
        if p.default is inspect.Parameter.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and k not in bound.arguments
    ]
    if missing:
        raise DiffAugError(f"{entry.name} was not given {', '.join(missing)}")
    for key in ("image", "images"):
        if key in bound.arguments:
            check_images(bound.arguments[key], backbone, key)
    return entry.function(*bound.args, **bound.kwargs)


def check_images(images: Any, backbone: Backbone, what: str = "image") -> None:
    """Refuse images whose shape is not the contract's, or which are not finite."""
    contract = backbone.contract
    want = (contract.channels, *contract.size)
    shape = tuple(images.shape)
    if len(shape) != len(want) + 1 or shape[1] != want[0]:
        raise DiffAugError(f"{what} is {shape}; backbone {backbone.name!r} takes (batch, {', '.join(map(str, want))})")
    if any(s % contract.factor for s in shape[2:]):
        raise DiffAugError(f"{what} is {shape}: its sides must be multiples of {contract.factor}; resize or pad it")
    if not bool(images.isfinite().all()):
        raise DiffAugError(f"{what} holds NaN or infinity: clean it (monai.transforms.SignalFillEmpty) first")
