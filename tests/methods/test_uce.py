"""The closed form, against its own optimum and on the matrices of the network."""

import pytest
import torch

from monai_diffaug import registry
from monai_diffaug.methods.semantic.concept import uce as module
from monai_diffaug.primitives import concepts
from monai_diffaug.testing import digest_of, tiny
from monai_diffaug.types import DiffAugError, NoiseSource

BACKBONE = tiny("text")


def edit(**given):
    return registry.call("uce", BACKBONE, **given)


def matrices(backbone):
    sites = [m for m, kind in backbone.network.attention_sites().values() if kind == "cross"]
    return [getattr(m, part).weight.double() for m in sites for part in ("to_k", "to_v")]


def test_it_edits_cross_attention_and_nothing_else():
    before = digest_of(BACKBONE)
    concept = edit(concepts="chest x-ray")
    assert concept.kind == "weights"
    assert set(concept.tensors) == {
        f"{name}.{part}.weight"
        for name, (_, kind) in BACKBONE.network.attention_sites().items()
        if kind == "cross"
        for part in ("to_k", "to_v")
    }
    assert digest_of(BACKBONE) == before


def test_erased_features_move_and_held_ones_stay(monkeypatch):
    """The paper's measure, in one sentence a concept (sixteen dimensions hold no more): W' c_e comes to W c_target by
    more than 80 %, W' c_p stays at W c_p within 5 %; without preserving it does not."""
    monkeypatch.setattr(module.embeddings, "prompt_bank", lambda _, words: [f"a {words}"])
    c, t = module._pair(BACKBONE, "chest x-ray", "head ct", "last")
    held, _ = module._pair(BACKBONE, "hand x-ray", "hand x-ray", "last")
    kept = {}
    for preserve in (["hand x-ray"], []):
        concept = edit(concepts="chest x-ray", target="head ct", preserve=preserve, reach="last", ridge=0.01)
        with concepts.applied(BACKBONE, concept) as edited:
            for old, new in zip(matrices(BACKBONE), matrices(edited), strict=True):
                before, after = ((w @ c.T - old @ t.T).norm() for w in (old, new))
                assert after < 0.2 * before
                moved = (new @ held.T - old @ held.T).norm() / (old @ held.T).norm()
                kept[len(preserve)] = max(kept.get(len(preserve), 0.0), float(moved))
    assert kept[1] < 0.05 < kept[0]


def test_the_closed_form_is_the_minimum():
    """No small step from it lowers the ridge regression's loss (eq. 4 to 6)."""
    pairs = [module._pair(BACKBONE, "chest x-ray", "", "rest"), module._pair(BACKBONE, "head ct", "head ct", "rest")]
    concept = edit(concepts="chest x-ray", preserve=["head ct"])
    pairs.append(module._pair(BACKBONE, "", "", "rest"))
    with concepts.applied(BACKBONE, concept) as edited:
        old, new = matrices(BACKBONE)[0], matrices(edited)[0]
    new = new.clone().requires_grad_(True)
    loss = 0.5 * (new - old).square().sum() + sum((new @ c.T - old @ t.T).square().sum() for c, t in pairs)
    (gradient,) = torch.autograd.grad(loss, new)
    scale = sum((old @ t.T).norm() * c.norm() for c, t in pairs)
    assert gradient.norm() < 1e-5 * scale


def test_balancing_stops_when_even_and_moves_shares_by_a_tenth(monkeypatch):
    seen = iter([[0.9, 0.1], [0.7, 0.3], [0.52, 0.48]])
    monkeypatch.setattr(module, "_shares", lambda *_: torch.tensor(next(seen)))
    both = ["small head ct", "large head ct"]
    concept = edit(concepts="head ct", attributes=both, generator=NoiseSource([0]))
    assert concept.info["shares"] == pytest.approx([0.52, 0.48])
    assert concept.info["shift"] == pytest.approx([-0.2, 0.2])
    old = dict(BACKBONE.network.module.named_parameters())
    assert any(not torch.equal(old[k], v) for k, v in concept.tensors.items())


def test_balancing_an_even_concept_changes_nothing(monkeypatch):
    monkeypatch.setattr(module, "_shares", lambda *_: torch.tensor([0.5, 0.5]))
    concept = edit(concepts="head ct", attributes=["small head ct", "large head ct"], generator=NoiseSource([0]))
    old = dict(BACKBONE.network.module.named_parameters())
    assert all(torch.allclose(old[k], v) for k, v in concept.tensors.items())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(DiffAugError, match="one target"):
        edit(concepts=["head ct", "hand x-ray"], target=["breast mri"])
    with pytest.raises(DiffAugError, match="generator"):
        edit(concepts="head ct", attributes=["small head ct"])
    with pytest.raises(DiffAugError, match="did you mean"):
        edit(concepts="hed ct")
    with pytest.raises(DiffAugError, match="cross_attention"):
        registry.call("uce", tiny("class"), concepts="tumor")
