"""Each law catches a method that breaks it and only it: what a law never refuses, it does not hold."""

import itertools
from dataclasses import replace

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.methods.semantic.image_to_image.sdedit import sdedit
from monai_diffaug.registry import Entry
from monai_diffaug.testing import Case, LawBrokenError, laws, tiny
from monai_diffaug.types import NoiseSource, Sample

LAWS = {law.name: law for law in laws()}
COUNT = itertools.count()


def nan(backbone, image, *, strength=0.5, generator):
    return Sample(image * float("nan"))


def cropped(backbone, image, *, strength=0.5, generator):
    return Sample(image[..., :-1])


def graph(backbone, image, *, strength=0.5, generator):
    return Sample(image.clone().requires_grad_() * 1.0)


def own_random(backbone, image, *, strength=0.5, generator):
    return Sample(image + torch.randn_like(image))


def batch_norm(backbone, image, *, strength=0.5, generator):
    out = sdedit(backbone, image, strength=strength, steps=2, generator=generator).image
    return Sample(out - out.mean())


def one_stream(backbone, image, *, strength=0.5, generator):
    """The first image's seed decides the noise of all."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(generator.seeds[0]))
    return Sample(image + strength * noise)


def deaf(backbone, image, *, strength=0.5, generator):
    return Sample(image * (1 - strength))


def never_neutral(backbone, image, *, strength=0.5, generator):
    return Sample(image + 0.1 + strength * generator.normal(image))


def writes(backbone, image, *, strength=0.5, generator):
    with torch.no_grad():
        next(backbone.network.module.parameters()).add_(1e-6)
    return Sample(image + strength * generator.normal(image))


def hooks(backbone, image, *, strength=0.5, generator):
    backbone.network.module.register_forward_hook(lambda *_: None)
    return Sample(image + strength * generator.normal(image))


def trains(backbone, image, *, strength=0.5, generator):
    backbone.network.module.train()
    return Sample(image + strength * generator.normal(image))


def careless(backbone, image, *, strength=0.5, generator):
    """Tidies up, but only when all goes well."""
    handle = backbone.network.module.register_forward_hook(lambda *_: None)
    out = sdedit(backbone, image, strength=strength, steps=3, generator=generator)
    handle.remove()
    return out


def swallows(backbone, image, *, strength=0.5, generator):
    try:
        return sdedit(backbone, image, strength=strength, steps=3, generator=generator)
    except RuntimeError:
        return Sample(image)


def lenient(backbone, image, *, strength=0.5, generator):
    return sdedit(backbone, image, strength=min(strength, 1.0), steps=2, generator=generator)


def late(backbone, image, *, strength=0.5, generator):
    backbone.output(backbone.encode(image), 10.0, backbone.condition(image.shape[0]))
    return sdedit(backbone, image, strength=strength, steps=2, generator=generator)


def crashes(backbone, image, *, strength=0.5, generator):
    assert strength <= 1
    return sdedit(backbone, image, strength=strength, steps=2, generator=generator)


def remembers(backbone, image, *, strength=0.5, generator):
    return Sample(image + strength * (generator.normal(image) + next(COUNT)))


def undeclared(backbone, image, *, strength=0.5, generator):
    return sdedit(backbone, image, strength=strength, steps=2, generator=generator)


BREAKS = [
    ("finite", nan, "not finite"),
    ("finite", cropped, "the image is"),
    ("finite", graph, "still carries a graph"),
    ("seeded", own_random, "differ by"),
    ("seeded", batch_norm, "differ by"),
    ("seeded", one_stream, "alone is another"),
    ("seeded", deaf, "ignores the seed"),
    ("neutral", never_neutral, "off by 0.1"),
    ("intact", writes, "the first in weights"),
    ("intact", hooks, "the first in network"),
    ("intact", trains, "the first in network"),
    ("intact", careless, "an exception in call"),
    ("intact", swallows, "swallowed an exception"),
    ("refuses", lenient, "wrong strength was accepted"),
    ("refuses", late, "only refused after 1 network calls"),
    ("refuses", crashes, "met by AssertionError"),
    ("replays", remembers, "the replay is another image"),
    ("named", undeclared, "it stands in test_laws_bite.py"),
    ("reachable", undeclared, "there is no method|is another method"),
]


@pytest.mark.parametrize(("law", "function", "says"), BREAKS, ids=lambda x: getattr(x, "__name__", None))
def test_a_law_catches_its_breach(law, function, says, monkeypatch):
    case = Case(Entry(function, "kept", neutral={"strength": 0.0}), tiny("class", size=8))
    if law == "replays":  # records name their method
        monkeypatch.setitem(registry._METHODS, function.__name__, case.method)
    with pytest.raises((LawBrokenError, ValueError), match=says):
        LAWS[law].holds(case)


def test_an_edit_without_neutral_setting_is_refused():
    with pytest.raises(LawBrokenError, match="must say under which setting nothing changes"):
        LAWS["neutral"].holds(Case(Entry(undeclared, "kept"), tiny("class", size=8)))


def test_a_good_method_breaks_none_of_them():
    """The same harness, the same backbone: what is caught above is the breach and not the harness."""
    case = Case(Entry(sdedit, "kept", neutral={"strength": 0.0}), tiny("class", size=8))
    for name in ("finite", "seeded", "neutral", "intact", "refuses", "replays", "named"):
        LAWS[name].holds(case)


def test_a_parameter_that_nobody_can_supply_is_named():
    def strange(backbone, image, *, wavelength, generator):
        return Sample(image)

    case = Case(Entry(strange, "kept"), tiny("none", size=8))
    with pytest.raises(ValueError, match=r"parameter 'wavelength'.*check_method\(..., wavelength=value\)"):
        case.arguments()
    assert replace(case, given={"wavelength": 3}).arguments()["wavelength"] == 3


def test_cases_give_each_image_its_own_seed_and_content():
    case = Case(Entry(sdedit, "kept"), tiny("class", size=8), batch=16)
    one = case.but(batch=1)
    assert torch.equal(case.arguments()["image"][:1], one.arguments()["image"])
    assert not torch.equal(case.images()[0], case.images()[1])
    assert isinstance(case.arguments()["generator"], NoiseSource)
    assert case.arguments()["steps"] == 4
