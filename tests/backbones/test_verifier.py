"""The siamese verifier: what it compares, what it remembers, when it may vouch, and how it is stored."""

import copy
from dataclasses import replace

import pytest
import torch

from monai_diffaug.backbones import hub
from monai_diffaug.backbones.saving import save_guard
from monai_diffaug.backbones.tiny import tiny
from monai_diffaug.backbones.verifier import SiameseNet, Verifier
from monai_diffaug.types import DiffAugError


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return SiameseNet((32, 32), widths=(8, 16, 16)).eval()


def noise(n, size=32, seed=0):
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def test_nothing_is_more_like_an_image_than_itself(net):
    seen = net.seen(noise(6))
    logits = net.same(seen[:, None], seen[None])
    assert torch.equal(logits.argmax(1), torch.arange(6))
    assert torch.allclose(logits, logits.T, atol=1e-5)
    assert torch.allclose(logits.diagonal(), net.compare.bias.expand(6), atol=1e-3)


def test_calibration_scales_and_shifts_every_logit(net):
    other = copy.deepcopy(net)
    seen = net.seen(noise(5))
    before = net.same(seen[:, None], seen[None])
    other.calibrate(1.5, 20.0)
    assert torch.allclose(other.same(seen[:, None], seen[None]), 20 * (before - 1.5), rtol=1e-3, atol=1e-2)


def test_brightness_and_contrast_do_not_matter(net):
    x = noise(4)
    changed = 0.5 * x + 0.2
    assert float((net.seen(x) - net.seen(changed)).abs().max()) < 1e-3
    assert float((net.seen(x) - net.seen(x.flip(-1))).abs().max()) > 1e-2


def test_the_nearest_is_found_among_those_remembered(net):
    known = noise(9)
    verifier = Verifier(net).remembering(known, range(9))
    (match,) = verifier.nearest(known[4:5] * 0.8)
    assert match.nearest == "4"
    assert match.distance == pytest.approx(0, abs=1e-4)
    assert match.probability == pytest.approx(float(net.compare.bias.sigmoid()), abs=1e-3)
    with pytest.raises(DiffAugError, match="remembers no training images"):
        Verifier(net).nearest(known)


def test_a_certificate_wants_a_good_verifier_measured_on_enough_patients(net):
    def says(**figures):
        return Verifier(net, 0.5, figures).withheld()

    assert "never measured" in says()
    assert "AUROC of 0.940 on 30 pairs of visits of 12 held-out patients, where 0.95 is wanted" in says(
        auroc=0.94, pairs=30, patients=12
    )
    assert "too few to vouch for" in says(auroc=0.97, pairs=6, patients=3)
    assert says(auroc=0.97, pairs=30, patients=12) == ""


def test_it_is_stored_beside_the_judge_and_is_not_part_of_the_digest(tmp_path):
    backbone = tiny("text", 2, 16)
    loaded = hub.load(hub.save(backbone, tmp_path / "with", precision=torch.float32))
    bare = hub.load(hub.save(replace(backbone, verifier=None), tmp_path / "without", precision=torch.float32))
    assert bare.verifier is None
    assert "verifier" in loaded.offers() - bare.offers()
    assert loaded.digest == bare.digest
    x = noise(3, 16)
    assert loaded.verifier.nearest(x) == backbone.verifier.nearest(x)
    assert loaded.verifier.threshold == backbone.verifier.threshold


def test_a_checkpoint_may_be_another_one_and_a_verifier(tmp_path):
    backbone = tiny("text", 2, 16)
    hub.save(replace(backbone, verifier=None), tmp_path / "generator")
    save_guard(backbone.verifier, tmp_path / "bundle" / "models", "../../generator")
    guarded = hub.load(tmp_path / "bundle")
    assert guarded.verifier is not None
    assert guarded.digest == hub.load(tmp_path / "generator").digest
    assert not list((tmp_path / "bundle").rglob("autoencoder*")), "its weights are not stored twice"
    (tmp_path / "generator").rename(tmp_path / "elsewhere")
    with pytest.raises(DiffAugError, match="copy the bundle of the generator beside this one"):
        hub.load(tmp_path / "bundle")


def test_an_index_that_lost_images_is_refused(tmp_path):
    folder = hub.save(tiny("text", 2, 16), tmp_path / "checkpoint")
    (folder / "verifier" / "index.json").write_text('{"ids": ["a"]}')
    with pytest.raises(DiffAugError, match="names 1 images and index holds 3"):
        hub.load(folder)
