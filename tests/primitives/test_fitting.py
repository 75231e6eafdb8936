"""From a user's image to a network's size and range, and back without harm."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_diffaug.primitives.fitting import fit, foreground_box, resampled
from monai_diffaug.types import Contract, DiffAugError


def contract(size=(32, 32), channels=1, **more):
    values = {"name": "c", "modality": "any", "spatial_dims": len(size), "channels": channels, "size": size}
    values |= {"latent_channels": 1, "latent_scale": 1.0, "factor": 1}
    return Contract(**(values | more))


def scene(*shape, seed=0):
    """Smooth blobs on a dark background with a faint floor of noise, in [0, 1]."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    r = np.sqrt(sum((a / 0.7) ** 2 for a in axes))
    image = (r < 1) * (0.5 + 0.3 * np.cos(3 * axes[0]) * np.sin(2 * axes[-1])) + 0.02 * rng.random(shape)
    return torch.tensor(image, dtype=torch.float32)[None]


def test_8_bit_goes_onto_the_value_range_exactly_also_as_floats():
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    wanted = image.float() / 255 * 2 - 1
    for given in (image, image.float(), image.double()):
        fitted = fit(given, contract((16, 16)))
        assert torch.allclose(fitted.tensor, wanted, atol=1e-6)
        assert fitted.window == ((0.0, 255.0),)
        back = fitted.restore(fitted.tensor)
        assert back.dtype == given.dtype
        assert torch.allclose(back.double(), given.double(), atol=1e-4)
    dark = fit(image // 4, contract((16, 16))).tensor  # a dark image stays dark
    assert float(dark.max()) == pytest.approx(63 / 255 * 2 - 1, abs=1e-5)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
def test_floats_in_a_known_interval_are_not_stretched(low, high):
    image = low + (high - low) * (scene(32, 32) * 0.6).clamp(0, 1)
    fitted = fit(image, contract(value_range=(0.0, 1.0)))
    assert fitted.window == ((low, high),)
    assert torch.allclose(fitted.tensor, (image - low) / (high - low), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float32, torch.float16, torch.float64])
def test_16_bit_and_floats_by_percentiles_and_the_extremes_come_back(dtype):
    image = (scene(40, 40) * 3000 - 1000).to(dtype)
    image[0, 20, 20] = 30000  # a metal artifact must not squeeze the rest, nor be lost
    fitted = fit(image, contract((40, 40)))
    ((low, high),) = fitted.window
    assert -1001 <= low < -900
    assert 900 < high < 2500
    assert float(fitted.tensor.min()) == -1.0
    assert float(fitted.tensor.max()) == 1.0
    back = fitted.restore(fitted.tensor)
    assert back.dtype == dtype
    assert torch.allclose(back.double(), image.double(), atol=1.0, rtol=1e-3)
    edited = fitted.tensor.clone()
    edited[0, 20, 20] = 0.0  # where the edit changed something, the old extreme does not come back
    assert float(fitted.restore(edited)[0, 20, 20]) == pytest.approx((low + high) / 2, rel=0.01)


def test_channels_have_windows_of_their_own_and_a_contract_may_fix_them():
    image = torch.cat([scene(32, 32) * 50 - 3, scene(32, 32, seed=1) * 9000 - 3])
    fitted = fit(image, contract(channels=2))
    assert fitted.window[1][1] > 50 * fitted.window[0][1]
    fixed = fit(image[:1] * 20, contract(extra={"window": [-200, 800]}))
    assert fixed.window == ((-200.0, 800.0),)


@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (20, 32), (33, 31), (24, 40, 16)])
@pytest.mark.parametrize("crop", ["none", "foreground"])
def test_an_unedited_image_loses_only_resampling(shape, crop):
    image = scene(*shape)
    fitted = fit(image, contract((32,) * len(shape), crop=crop))
    assert fitted.tensor.shape == (1, *(32,) * len(shape))
    back = fitted.restore(fitted.tensor)
    assert back.shape == image.shape
    assert float((back - image).abs().mean()) < 0.03
    assert float((back - image).abs().mean()) < 0.2 * float((image - image.mean()).abs().mean())


def test_aspect_is_kept_by_padding_with_background():
    wide = torch.full((1, 16, 64), 200, dtype=torch.uint8)
    wide[..., 0] = 100
    small = fit(wide, contract((32, 32))).tensor
    assert torch.all(small[:, :11] == -1)
    assert torch.all(small[:, 21:] == -1)
    assert float(small[0, 16, 16]) == pytest.approx(200 / 255 * 2 - 1, abs=1e-4)
    stretched = fit(wide, contract((32, 32), extra={"aspect": "stretch"})).tensor
    assert float(stretched.min()) > -0.5


@pytest.mark.parametrize("shape", [(80, 120), (30, 40, 20)])
def test_foreground_box_is_around_the_foreground_and_ignores_specks(shape):
    image = torch.zeros(1, *shape)
    inner = tuple(slice(n // 4, n // 2) for n in shape)
    image[(0, *inner)] = 1.0
    image[(0, *(1,) * len(shape))] = 1.0  # one hot voxel in the corner
    box = foreground_box(image, (32,) * len(shape), 0.0, 1.0)
    sides = {b - a for a, b in box}
    assert len(sides) == 1, "the box has the contract's aspect"
    for (a, b), n in zip(box, shape):
        assert a <= n // 4
        assert b >= n // 2
    assert sides.pop() <= 1.1 * max(n // 2 - n // 4 for n in shape) + 1


def test_what_lies_outside_the_foreground_box_is_left_alone():
    image = scene(96, 96) * 0
    image[0, 30:60, 30:60] = 0.8
    image[0, 2, 2] = 0.05
    fitted = fit(image, contract(crop="foreground"))
    back = fitted.restore(torch.full_like(fitted.tensor, 1.0))
    assert float(back[0, 2, 2]) == pytest.approx(0.05)
    assert float(back[0, 45, 45]) == 1.0


def test_detail_of_the_source_survives_where_nothing_was_edited_and_leaves_no_ghost_where_it_was():
    torch.manual_seed(0)
    image = (scene(128, 128) + 0.1 * torch.rand(1, 128, 128)).clamp(0, 1)  # texture that 32 x 32 cannot hold
    fitted = fit(image, contract((32, 32)))
    blurred = resampled(resampled(fitted.tensor, (16, 16)), (32, 32))  # what a lossy autoencoder makes of it
    new = blurred.clone()
    new[:, 12:20, 12:20] = -0.9
    back = fitted.restore(new, blurred)
    plain = fitted.restore(new)
    far = torch.ones(128, 128, dtype=torch.bool)
    far[36:92, 36:92] = False
    assert float((back - image)[0, far].abs().max()) < 1e-5, "unedited voxels keep their resolution"
    assert float((plain - image)[0, far].abs().max()) > 0.05, "the plain way would lose it"
    inside = back[0, 56:72, 56:72]
    assert float((inside - 0.05).abs().max()) < 0.01, "no trace of the source where the edit replaced it"
    assert float(back.min()) >= 0.0
    assert float(back.max()) <= 1.0
    again = fitted.restore(blurred, blurred)
    assert torch.allclose(again, image, atol=1e-5)


def test_outside_an_edited_region_the_source_itself_is_the_reference():
    image = scene(64, 64)
    fitted = fit(image, contract((32, 32)))
    reconstruction = fitted.tensor * 0.8  # a poor autoencoder
    new = fitted.tensor.clone()
    new[:, 14:18, 14:18] = 0.9  # a masked method puts the source back everywhere else
    back = fitted.restore(new, reconstruction)
    assert torch.allclose(back[:, :20], image[:, :20], atol=1e-5)


def test_masks_share_the_box_and_come_back_with_their_own_values():
    image = scene(60, 90)
    mask = torch.zeros(1, 60, 90, dtype=torch.uint8)
    mask[0, 25:35, 40:60] = 255
    whole = fit(image, contract((32, 32), crop="foreground"))
    fitted = fit(mask, contract((32, 32), crop="foreground"), mask=True, like=whole)
    assert fitted.box == whole.box
    assert set(fitted.tensor.unique().tolist()) == {0.0, 1.0}
    back = fitted.restore(fitted.tensor)
    assert back.dtype == torch.uint8
    assert set(back.unique().tolist()) == {0, 255}
    overlap = ((back > 0) & (mask > 0)).sum() / ((back > 0) | (mask > 0)).sum()
    assert float(overlap) > 0.8
    made = whole.restore_mask(fitted.tensor)
    assert made.shape == mask.shape
    assert torch.equal(made * 255, back)


def test_label_maps_keep_their_labels():
    labels = torch.zeros(1, 64, 48, dtype=torch.int32)
    labels[0, 10:30, 10:30] = 3
    labels[0, 30:50, 20:40] = 7
    fitted = fit(labels, contract((32, 32)), mask=True)
    assert set(fitted.tensor.unique().tolist()) == {0.0, 3.0, 7.0}
    back = fitted.restore(fitted.tensor)
    assert set(back.unique().tolist()) == {0, 3, 7}
    assert float((back == labels).float().mean()) > 0.93


def test_metatensor_stays_one_with_its_affine_and_history():
    affine = torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    image = MetaTensor(scene(40, 40), affine=affine, meta={"filename_or_obj": "a.nii"})
    image.applied_operations.append({"class": "X"})
    fitted = fit(image, contract())
    assert not isinstance(fitted.tensor, MetaTensor)
    back = fitted.restore(fitted.tensor, fitted.tensor)
    assert isinstance(back, MetaTensor)
    assert torch.equal(back.affine, affine)
    assert back.meta["filename_or_obj"] == "a.nii"
    assert back.applied_operations == [{"class": "X"}]
    assert back.data_ptr() != image.data_ptr()


def test_8_bit_headers_are_heeded():
    noisy = scene(32, 32) * 180.3
    png = MetaTensor(noisy, meta={"mode": "L"})
    assert fit(png, contract()).window == ((0.0, 255.0),)
    assert fit(MetaTensor(noisy, meta={"datatype": 2}), contract()).window == ((0.0, 255.0),)
    short = MetaTensor(noisy.round(), meta={"datatype": 4})  # int16 that happens to be small
    assert fit(short, contract()).window[0][1] < 200


def test_a_contract_may_ask_for_percentiles_whatever_the_type():
    image = (scene(40, 40) * 100).to(torch.uint8)
    fitted = fit(image, contract((40, 40), intensity=(1.0, 99.0)))
    wanted = torch.quantile(image.float(), torch.tensor([0.01, 0.99])).tolist()
    assert fitted.window[0] == pytest.approx(wanted)
    assert fit(image.float() / 255, contract((40, 40), intensity=(1.0, 99.0))).tensor.allclose(fitted.tensor, atol=1e-5)
    assert torch.equal(fitted.restore(fitted.tensor), image)


def test_slices_are_turned_to_how_a_viewer_shows_them(tmp_path):
    import nibabel as nib
    from monai.transforms import LoadImage, SqueezeDim
    from PIL import Image

    upright = (scene(20, 32) * 250).to(torch.uint8)[0]
    upright[:6, :6] = 255  # upper left
    Image.fromarray(upright.numpy()).save(tmp_path / "a.png")
    wanted = fit(upright[None], contract()).tensor
    load = LoadImage(ensure_channel_first=True)
    picture = load(tmp_path / "a.png")
    assert picture.shape == (1, 32, 20), "MONAI gives x first"
    assert torch.allclose(fit(picture, contract()).tensor, wanted, atol=1e-5)
    # the same slice in NIfTI: axes to the patient's left and back, or to his right and front
    for sign, array in ((-1, upright.T), (1, upright.T.flip(0, 1))):
        affine = np.diag([sign * 2.0, sign * 2.0, 5.0, 1.0])
        nib.save(nib.Nifti1Image(np.ascontiguousarray(array.numpy())[..., None], affine), tmp_path / "a.nii.gz")
        volume = load(tmp_path / "a.nii.gz")
        for nifti in (SqueezeDim(dim=-1)(volume), volume[..., 0]):
            fitted = fit(nifti, contract())
            assert torch.allclose(fitted.tensor, wanted, atol=1e-5)
            assert torch.allclose(fitted.restore(fitted.tensor, fitted.tensor), nifti, atol=1e-3)
            mask = fit(nifti >= 254, contract(), mask=True, like=fitted)
            assert torch.equal(mask.tensor, (fit((upright[None] >= 254), contract(), mask=True).tensor))
            assert mask.restore(mask.tensor).shape == nifti.shape


def test_volumes_are_turned_to_the_orientation_of_the_contract():
    volume = scene(20, 24, 28)
    volume[0, :6] = 0.9
    affine = torch.tensor([[0, 0, 3.0, 0], [-2, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    image = MetaTensor(volume, affine=affine, meta={"space": "RAS"})  # axes go P, I, R
    fitted = fit(image, contract((32, 32, 32), orientation="RAS"))
    assert fitted.turn == ((2, False), (0, True), (1, True))
    by_hand = fit(volume.permute(0, 3, 1, 2).flip(2, 3), contract((32, 32, 32)))
    assert torch.allclose(fitted.tensor, by_hand.tensor)
    assert torch.allclose(fitted.restore(fitted.tensor, fitted.tensor), image, atol=1e-5)
    assert fit(image, contract((32, 32, 32))).turn == ((0, False), (1, False), (2, False))


def test_axes_may_be_said():
    image = scene(20, 32)
    assert torch.equal(
        fit(image, contract(), axes="xy").tensor, fit(image.transpose(1, 2), contract(), axes="yx").tensor
    )
    for untold in (image, MetaTensor(image)):
        assert torch.equal(fit(untold, contract()).tensor, fit(image, contract(), axes="yx").tensor)
    with pytest.raises(DiffAugError, match="axes"):
        fit(image, contract(), axes="zy")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(3, 32, 32), "3 channels.*takes 1.*select"),
        (torch.rand(1, 32, 32, 8), "3D.*is 2D.*slices"),
        (torch.rand(32, 32), "EnsureChannelFirst"),
        (torch.full((1, 32, 32), float("nan")), "NaN.*clean"),
        (torch.rand(1, 32, 32) / 0, "infinity"),
        (torch.ones(1, 32, 32), "constant"),
        (torch.rand(1, 0, 32), "empty"),
        (torch.rand(1, 32, 32, dtype=torch.complex64), "magnitude"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(image, words):
    with pytest.raises(DiffAugError, match=words) as error:
        fit(image, contract())
    assert "\n" not in str(error.value)


def test_2d_data_for_a_3d_network_is_refused():
    with pytest.raises(DiffAugError, match=r"is 3D.*EnsureChannelFirst"):
        fit(torch.rand(1, 32, 32), contract((16, 16, 16)))
