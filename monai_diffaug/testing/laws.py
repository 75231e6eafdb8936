"""The laws that every method obeys, written once and run from the registry."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..backbones.tiny import tiny
from ..provenance import Record, replay
from ..types import Backbone, Concept, DiffAugError, NoiseSource, Sample
from .intact import Counter, imprint
from .supply import BACKBONES, Case, case_for, picture

__all__ = ["Law", "LawBrokenError", "check_method", "laws"]


class LawBrokenError(AssertionError):
    """A method does not do what all methods must do."""


@dataclass(frozen=True)
class Law:
    """``holds(case)`` raises :class:`LawBrokenError`; what cannot apply is passed over."""

    name: str
    says: str
    holds: Callable[[Case], None]


_LAWS: list[Law] = []


def _law(says: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def keep(holds: Callable[[Case], None]) -> Callable[[Case], None]:
        _LAWS.append(Law(holds.__name__, says, holds))
        return holds

    return keep


def laws() -> tuple[Law, ...]:
    """All laws, in the order of the design."""
    return tuple(_LAWS)


def check_method(method: str, backbone: Backbone | None = None, **given: Any) -> None:
    """Hold a method to every law.

    Args:
        method: its name.
        backbone: what to run it on; every tiny backbone that it can run on unless given.
        given: values for parameters that the vocabulary of :mod:`.supply` lacks.

    Raises:
        LawBrokenError: at least one law is broken; the message lists all that are, and where.
    """
    entry = registry.get(method)
    if backbone is not None:
        cases = [Case(entry, backbone, given=given)]
    else:
        cases = [case for on in BACKBONES if (case := case_for(entry, on, **given)) is not None]
    broken = []
    for case in cases:
        for law in laws():
            try:
                law.holds(case)
            except (LawBrokenError, DiffAugError) as error:
                broken.append(f"{law.name} on {case.backbone.name}: {error} ({law.says})")
    if broken:
        raise LawBrokenError("\n".join([f"{entry.name} breaks {len(broken)} laws:", *broken]))


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise LawBrokenError(otherwise)


# -------------------------------------------------------------------------------------------------------- 1: the result


@_law("finite results of the contract's shape")
def finite(case: Case) -> None:
    """Law 1."""
    result = case.run()
    contract = case.backbone.contract
    if case.method.shape == "learn":
        for name, value in _learned(case, result).items():
            _demand(bool(value.isfinite().all()), f"tensor {name!r} of the concept is not finite")
        return
    samples = result if case.method.shape == "expand" else [result]
    _demand(bool(samples), "it yielded nothing")
    for sample in samples:
        _demand(isinstance(sample, Sample), f"it returned {type(sample).__name__} and not a Sample")
        size = (
            sample.image.shape[1:] if case.method.shape != "expand" else sample.image.shape[-len(contract.size) - 1 :]
        )
        _demand(tuple(size) == (contract.channels, *contract.size), f"the image is {tuple(sample.image.shape)}")
        if case.method.shape == "edit":
            _demand(sample.image.shape[0] == case.batch, f"{case.batch} images became {sample.image.shape[0]}")
        for name in ("image", "mask", "map"):
            value = getattr(sample, name)
            if value is not None:
                _demand(bool(value.isfinite().all()), f"the {name} is not finite")
                _demand(
                    value.shape[-len(contract.size) :] == sample.image.shape[-len(contract.size) :], f"size of {name}"
                )
        _demand(not sample.image.requires_grad, "the image still carries a graph: detach it")
        _jsonable(sample)


def _jsonable(sample: Sample) -> None:
    for name, value in (("info", dict(sample.info)), ("prompt", sample.prompt), ("label", sample.label)):
        try:
            json.dumps(value)
        except TypeError as error:
            raise LawBrokenError(f"the sample's {name} is not JSON ({error})") from None


def _learned(case: Case, result: Any) -> dict[str, Tensor]:
    """The tensors of what a ``learn`` method returned."""
    if isinstance(result, Backbone):
        return {k: p for k, p in result.network.module.named_parameters() if p.is_floating_point()}
    _demand(isinstance(result, Concept), f"it returned {type(result).__name__}, neither a Concept nor a Backbone")
    _demand(bool(result.tensors), "the concept is empty")
    _demand(result.backbone_digest == case.backbone.digest, "the concept does not name the backbone's digest")
    json.dumps(dict(result.info))
    return dict(result.tensors)


# ---------------------------------------------------------------------------------------------------------- 2: the seed


@_law("the same seed gives the same image, whatever the batch size")
def seeded(case: Case) -> None:
    """Law 2."""
    if case.method.shape in ("learn", "expand"):
        first, again = _outcome(case), _outcome(case, shaken=True)
        _demand(_far(first, again) == 0.0, "two runs with one seed differ")
        _demand(_drawn_from(case) or _far(first, _outcome(case.but(seed=case.seed + 100))) > 0, "it ignores the seed")
        return
    whole = _outcome(case.but(batch=16))
    for size in (4, 1):
        part = _outcome(case.but(batch=size), shaken=True)
        _demand(
            _far(whole[:size], part) < 2e-3,
            f"image 0 in a batch of 16 and of {size} differ by {_far(whole[:size], part):.2g}",
        )
    one = case.but(batch=1)
    last = _outcome(one.but(seed=case.seed + 15), image=case.images(16)[15:]) if case.method.shape == "edit" else None
    _demand(last is None or _far(whole[15:], last) < 2e-3, "the last image of a batch of 16 alone is another")
    _demand(_drawn_from(one) or _far(whole[:1], _outcome(one.but(seed=case.seed + 100))) > 1e-3, "it ignores the seed")


def _deterministic(case: Case) -> bool:
    """Methods that draw nothing say so by ``generator=None``."""
    generator = case.method.signature.parameters.get("generator")
    return generator is None or generator.default is None


def _drawn_from(case: Case) -> bool:
    """Whether a run draws from its generator, or need not: a mask that is given need not be drawn for."""
    if _deterministic(case) or case.variant:
        return True
    source = NoiseSource(range(case.seed, case.seed + case.batch))
    before = source.state()
    case.run(generator=source)
    return any(not torch.equal(a, b) for a, b in zip(before, source.state(), strict=True))


def _outcome(case: Case, *, shaken: bool = False, **changed: Any) -> Tensor:
    """What a run produced, as one tensor; ``shaken`` puts PyTorch's own random state elsewhere first."""
    torch.manual_seed(987 if shaken else 0)
    result = case.run(**changed)
    if case.method.shape == "learn":
        return torch.cat([t.detach().double().flatten() for t in _learned(case, result).values()])
    return picture(result)


def _far(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the spread; infinite if the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / max(float(b.float().std().nan_to_num(0.0)), 1e-3))


# ------------------------------------------------------------------------------------------------------ 3: nothing done


@_law("under its neutral setting it gives the reconstruction")
def neutral(case: Case) -> None:
    """Law 3."""
    setting = case.method.neutral
    _demand(setting is not None or case.method.shape != "edit", "an edit must say under which setting nothing changes")
    if setting is None:
        return
    if case.method.shape == "learn":
        _changes_nothing(case, case.run(**setting))
        return
    if case.method.shape == "generate":
        return  # there is nothing that could be reconstructed
    image = case.images()
    with torch.no_grad():
        back = case.backbone.decode(case.backbone.encode(image))
    got = picture(case.run(**setting))
    got = got.reshape(-1, *image.shape[1:])
    for i in range(got.shape[0]):
        source = slice(i * image.shape[0] // got.shape[0], i * image.shape[0] // got.shape[0] + 1)
        # outside a mask the pixels themselves are put back, which is better still than the reconstruction
        miss = torch.minimum((got[i] - back[source]).abs(), (got[i] - image[source]).abs()).max()
        _demand(float(miss) < 2e-3, f"image {i} is off by {float(miss):.2g} under {dict(setting)}")


def _changes_nothing(case: Case, result: Any) -> None:
    from ..primitives.concepts import applied

    backbone = case.backbone
    x = torch.randn(1, backbone.contract.latent_channels, *backbone.contract.latent_size)
    hint = torch.ones(1, int(getattr(result, "info", {}).get("hint_channels", 1)), *backbone.contract.size)
    with torch.no_grad(), applied(backbone, result, hint=hint) as taught:
        for level in (0.2, 0.8):
            t = level * backbone.schedule.times[-1]
            before, after = (b.output(x, t, b.condition(1)) for b in (backbone, taught))
            _demand(_far(after, before) < 1e-4, f"the concept learned under {dict(case.method.neutral or {})} acts")


# ----------------------------------------------------------------------------------------------- 4: nothing left behind


class _InterruptError(RuntimeError):
    """Thrown in the middle of a run."""


@_law("the backbone is byte for byte as before, also after an exception half-way")
def intact(case: Case) -> None:
    """Law 4."""
    before, random = imprint(case.backbone), torch.is_grad_enabled()
    with Counter(case.backbone) as counter:
        case.run()
    _demand(imprint(case.backbone) == before, f"it left {_difference(before, imprint(case.backbone))}")
    for stop in sorted({1, (counter.calls + 1) // 2, counter.calls} - {0}):
        try:
            with Counter(case.backbone, stop, _InterruptError):
                case.run()
        except _InterruptError:
            pass
        else:
            raise LawBrokenError(f"it swallowed an exception that the network threw in call {stop} of {counter.calls}")
        left = imprint(case.backbone)
        _demand(left == before, f"an exception in call {stop} left {_difference(before, left)}")
        _demand(torch.is_grad_enabled() == random, f"an exception in call {stop} left gradients switched")


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    changed = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    return f"{len(changed)} changes, the first in {changed[0]}" if changed else "no change"


# ----------------------------------------------------------------------------------------------------------- 5: refusal


@_law("what it needs and does not get is refused before the first step, in one sentence that names the remedy")
def refuses(case: Case) -> None:
    """Law 5."""
    backbone, method = case.backbone, case.method
    bare = tiny("none", backbone.contract.spatial_dims, backbone.contract.size[0])
    lacking = sorted(set(method.needs) - bare.offers())
    if lacking:
        _refused(case.but(backbone=bare, given={**case.arguments()}), lacking[0])
    if len(method.dims) == 1:
        other = tiny("text", 5 - method.dims[0], 8)
        _refused(case.but(backbone=other, given={**case.arguments()}), f"{method.dims[0]}D")
    _refused(case, "no parameter", not_a_parameter=1)
    names = method.signature.parameters
    for key in {"image", "images"} & set(names):
        images = case.arguments()[key]
        holed = images.clone()
        holed[0, 0, 0, 0] = float("nan")
        _refused(case, "NaN", **{key: holed})
        _refused(case, str(backbone.contract.channels), **{key: images.repeat(1, 2, *[1] * (images.ndim - 2))})
        _refused(case, "size" if "size" in names else "(", **{key: images[:, :, 0]})
    if "strength" in names:
        _refused(case, "strength", strength=1.5)
    if "steps" in names:
        _refused(case, "steps", steps=-1)
    if "mask" in names:
        _refused(case, "mask", mask=torch.ones(case.batch, 1, *[3] * len(backbone.contract.size)))
    if "prompt" in names and "prompt" in backbone.conditioner.accepts:
        _refused(case, "did you mean", prompt="zebra")
    if method.shape == "edit" and not _deterministic(case):
        _refused(case, "seed", generator=NoiseSource(range(case.batch + 1)))


def _refused(case: Case, word: str, **changed: Any) -> None:
    what = ", ".join(changed) or f"a backbone without {word}"
    with Counter(case.backbone, parts=("network",)) as counter:
        try:
            case.run(**changed)
        except DiffAugError as error:
            text = str(error)
        except Exception as error:
            raise LawBrokenError(f"wrong {what} is met by {type(error).__name__}: {error}") from error
        else:
            raise LawBrokenError(f"wrong {what} was accepted")
    _demand("\n" not in text and len(text) < 500, f"the error about {what} is not one sentence: {text}")
    _demand(word.lower() in text.lower(), f"the error about {what} does not mention {word!r}: {text}")
    _demand(counter.calls == 0, f"wrong {what} is only refused after {counter.calls} network calls")


# ------------------------------------------------------------------------------------------------------------ 6: record


@_law("its record survives JSON and replays to the same image")
def replays(case: Case) -> None:
    """Law 6."""
    if case.method.shape == "expand":
        return  # its samples are recorded one by one, by what runs it
    one = case.but(batch=1)
    arguments = {k: v for k, v in one.arguments().items() if k != "generator"}
    plain = {k: v for k, v in arguments.items() if _is_json(v)}
    record = Record(
        method=case.method.name,
        backbone=case.backbone.name,
        backbone_digest=case.backbone.digest,
        seed=case.seed,
        parameters=plain,
    )
    again = Record.from_json(record.to_json())
    _demand(again == record, "the record is another after JSON")
    taken = "generator" in case.method.signature.parameters
    first = _outcome(one, generator=NoiseSource([case.seed])) if taken else _outcome(one)
    data = {k: v for k, v in arguments.items() if k not in plain}
    result = replay(again, case.backbone, **data)
    value = (
        picture(result)
        if case.method.shape != "learn"
        else torch.cat([t.detach().double().flatten() for t in _learned(one, result).values()])
    )
    _demand(torch.equal(value, first), "the replay is another image")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


# ------------------------------------------------------------------------------------------------ 7: names and the card


@_law("file name = function name, folder = heading, card complete, every parameter explained, no name that MONAI has")
def named(case: Case) -> None:
    """Law 7."""
    method = case.method
    _demand(method.file.stem == method.name, f"it stands in {method.file.name}")
    if method.function.__module__.startswith("monai_diffaug.methods."):
        folder = "/".join(method.file.parent.parts[-method.heading.count("/") - 1 :])
        _demand(folder == method.heading, f"it stands in {folder} and says {method.heading}")
    missing = {"Paper", "Idea", "Changes", "Departs"} - {k for k, v in method.card.items() if v}
    _demand(not missing, f"its module docstring lacks {', '.join(sorted(missing))}")
    text = inspect.getdoc(method.function) or ""
    unsaid = [p for p in registry.parameters(method) if f"{p}:" not in text]
    _demand(not unsaid, f"its docstring does not explain {', '.join(unsaid)}")
    from monai.bundle.config_item import ComponentLocator

    found = ComponentLocator(excludes=["monai_diffaug"]).get_component_module_name(method.name)
    _demand(not found, f"MONAI has {method.name} too, in {found}")


# ----------------------------------------------------------------------------------------------------------- 8: by name


@_law("reachable by its name and each alias")
def reachable(case: Case) -> None:
    """Law 8, as far as the registry and the transforms go; the command line has its own test."""
    for name in (case.method.name, *case.method.aliases):
        _demand(registry.get(name).function is case.method.function, f"{name!r} is another method")
    _demand(case.method in registry.listing(case.method.name), "`diffaug list` does not show it")
