"""One clear line for what is wrong, nothing written half, and the job goes on, unless it cannot or must not."""

import errno
import json
import os

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_diffaug.expand import edit, expand
from monai_diffaug.testing import tiny
from monai_diffaug.types import DiffAugError

from .conftest import NO_MOUNT, files_of, with_disk

RNG = np.random.default_rng(0)
FAST = {"steps": 3, "strength": 0.4}


def spoil(path, what):
    """Put something that cannot be used in the place of an image."""
    noise = RNG.integers(0, 255, (24, 24), dtype=np.uint8)
    if what == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "text":
        path.write_text("no image")
    elif what == "missing":
        path.unlink()
    elif what == "constant":
        Image.fromarray(noise * 0 + 9).save(path)
    elif what == "color":
        Image.fromarray(RNG.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(path)
    return path


BAD = {
    "truncated": "corrupt or truncated",
    "text": "corrupt or truncated",
    "missing": "does not exist",
    "constant": "constant",
    "color": "3 channels, backbone 'ideal' takes 1",
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_image_is_said_listed_and_passed_over(tmp_path, scans, heads, what):
    path = spoil(scans.parent / "images" / "2.png", what)
    lines = []
    outcome = expand(
        scans, tmp_path / "out", "sdedit", heads, parameters=FAST, copies=2, batch_size=4, say=lines.append
    )
    assert outcome.made == 10
    assert lines == list(outcome.skipped)
    (line,) = lines  # once, not once for each copy
    assert str(path) in line
    assert BAD[what] in line
    assert "\n" not in line
    data = json.loads(outcome.datalist.read_text())
    assert data["skipped"] == lines
    assert not [f for f in files_of(tmp_path / "out") if "/2_" in f]
    with pytest.raises(DiffAugError, match="2.png"):
        expand(scans, tmp_path / "strict", "sdedit", heads, parameters=FAST, strict=True)


def test_a_mended_image_is_made_at_the_next_run(tmp_path, scans, heads):
    path = scans.parent / "images" / "2.png"
    good = path.read_bytes()
    spoil(path, "truncated")
    expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST)
    path.write_bytes(good)
    outcome = expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST)
    assert (outcome.made, outcome.before, outcome.skipped) == (6, 5, ())
    assert "skipped" not in json.loads(outcome.datalist.read_text())


def test_a_bad_mask_and_one_of_another_size(tmp_path, scans, heads):
    spoil(scans.parent / "masks" / "1.png", "truncated")
    Image.fromarray(np.eye(9, dtype=np.uint8) * 255).save(scans.parent / "masks" / "3.png")
    outcome = expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST)
    assert outcome.made == 4
    assert "1.png is corrupt" in outcome.skipped[0]
    assert "9 x 9 and its image 24 x 24" in outcome.skipped[1]


@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_volumes_with_numbers_that_are_none(tmp_path, nifti_scans, volumes, fill):
    array = RNG.random((10, 10, 9)).astype("float32")
    array[3, 3, 3] = fill
    nib.save(nib.Nifti1Image(array, np.eye(4)), nifti_scans / "case1.nii.gz")
    outcome = expand(nifti_scans, tmp_path / "out", "sdedit", volumes, parameters={**FAST, "prompt": "tumor"})
    assert outcome.made == 2
    assert "case1.nii.gz holds NaN or infinity" in outcome.skipped[0]


def test_a_flat_model_on_volumes_fails_as_a_whole(tmp_path, nifti_scans, heads):
    with pytest.raises(DiffAugError, match=r"nothing was made: .*case0\.nii\.gz is a volume .* the backbone is 2D"):
        expand(nifti_scans, tmp_path / "out", "sdedit", heads, parameters={**FAST, "prompt": "tumor"})
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize("dtype", ["uint16", "float32", "int16"])
def test_other_ranges_come_back_in_their_own(tmp_path, volumes, dtype):
    """16-bit and float images are no bad input: a slight change stays near the source, in its units."""
    folder = tmp_path / "scans"
    folder.mkdir()
    image = (volumes.network.module.points[1, 0].numpy() + 1) / 2
    array = (image * 2000 + 500).astype(dtype)
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "a.nii.gz")
    slight = {"steps": 20, "strength": 0.1, "scale": 1.0, "prompt": "tumor"}
    expand(folder, tmp_path / "out", "sdedit", volumes, parameters=slight)
    new = np.asarray(nib.load(tmp_path / "out" / "images" / "a_sdedit_1.nii.gz").dataobj)
    assert new.dtype == dtype
    change = np.abs(new.astype(float) - array)
    assert 0 < change.mean() < 0.1 * np.ptp(array)


def test_sixteen_bit_png(tmp_path, heads):
    folder = tmp_path / "scans"
    folder.mkdir()
    image = (heads.network.module.points[1, 0].numpy() + 1) / 2
    Image.fromarray((image * 40000 + 1000).astype("uint16")).save(folder / "a.png")
    expand(folder, tmp_path / "out", "sdedit", heads, parameters={**FAST, "prompt": "tumor"})
    with Image.open(tmp_path / "out" / "images" / "a_sdedit_1.png") as new:
        assert new.mode == "I;16"
        assert np.asarray(new).max() > 20000


SETTINGS = [
    ({"methods": "sdedti"}, r"there is no method 'sdedti': did you mean 'sdedit'"),
    ({"parameters": {"strenght": 1}}, r"sdedit has no parameter 'strenght': did you mean 'strength'"),
    ({"parameters": {"prompt": "a tumour"}}, r"'tumour', did you mean 'tumor'"),
    ({"parameters": {"strength": 7}}, "strength"),
    ({"methods": "textual_inversion"}, "run `diffaug learn` first"),
    ({"methods": "universal_guidance"}, "use `diffaug generate`"),
    ({"methods": []}, "no method was given"),
    ({"backbone": "brain_mir"}, "backbone 'brain_mir' is unknown"),
    ({"concepts": ["nowhere.safetensors"]}, "there is no concept file nowhere.safetensors"),
    ({"keep": {"label": 0.5}}, "wants a judge or a scorer"),
    ({"keep": {"quality": 1}}, "wants a judge"),
    ({"keep": {"beauty": 1}}, "there is no filter 'beauty'"),
    ({"copies": 0}, "give 1 or more"),
    ({"section": "test"}, "no list 'test'"),
]


@pytest.mark.parametrize(("change", "says"), SETTINGS)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(tmp_path, scans, heads, change, says):
    given = {"methods": "sdedit", "backbone": heads, "parameters": {"steps": 3}, **change}
    with pytest.raises(DiffAugError, match=says) as caught:
        expand(scans, tmp_path / "out", **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "images").exists()


def test_words_that_the_vocabulary_lacks(tmp_path, scans):
    with pytest.raises(DiffAugError, match="lrge"):
        expand(scans, tmp_path / "out", "sdedit", tiny("text"), parameters={"prompt": "a lrge head ct"})
    assert not (tmp_path / "out").exists()


def test_empty_folders(tmp_path, heads):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffAugError, match="holds no image"):
        expand(tmp_path / "empty", tmp_path / "out", "sdedit", heads)
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_said(tmp_path, scans, heads, monkeypatch):
    from monai_diffaug.expand import loop

    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loop, "make", full)
    with pytest.raises(DiffAugError, match="memory ran out: give a smaller batch size"):
        expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST)


def test_a_disk_that_fills_up_and_is_freed(tmp_path, scans, heads):
    """On a real file system without room: one line, nothing half, and the next run ends as an unbroken one."""
    whole = expand(scans, tmp_path / "whole", "sdedit", heads, parameters=FAST, copies=4, batch_size=2)
    disk = tmp_path / "disk"
    disk.mkdir()
    told = tmp_path / "told.json"

    def run():
        blocks = disk / "block"
        blocks.write_bytes(b"x" * 524288)
        lines, moments = [], []
        try:
            expand(scans, disk / "out", "sdedit", heads, parameters=FAST, copies=4, batch_size=2)
        except DiffAugError as error:
            lines.append(str(error))
            moments.append(files_of(disk / "out"))
        blocks.unlink()
        expand(scans, disk / "out", "sdedit", heads, parameters=FAST, copies=4, batch_size=2)
        sources = {f: json.loads((disk / "out" / f).read_text()) for f in files_of(disk / "out") if "records" in f}
        told.write_text(json.dumps([lines, moments, files_of(disk / "out"), sorted(sources)]))
        return 0

    code = with_disk(disk, "size=640k", run)
    if code == NO_MOUNT:
        pytest.skip("no right to mount a small disk here")
    assert code == 0
    (lines, (moment,), end, _) = json.loads(told.read_text())
    assert len(lines) == 1
    assert "disk is full: free some space and run the same command again" in lines[0]
    images = {k: v for k, v in files_of(whole.folder).items() if k.startswith(("images", "masks"))}
    assert {k: v for k, v in moment.items() if k.startswith(("images", "masks"))}.items() <= images.items()
    assert 0 < len(moment) < len(end)
    assert not [f for f in moment if f.endswith(".part")]
    assert {k: v for k, v in end.items() if k.startswith(("images", "masks"))} == images


def test_a_read_only_folder(tmp_path, scans, heads):
    disk = tmp_path / "disk"
    disk.mkdir()
    told = tmp_path / "told"

    def run():
        try:
            expand(scans, disk / "out", "sdedit", heads, parameters=FAST)
        except DiffAugError as error:
            told.write_text(str(error))
        return 0

    code = with_disk(disk, "size=64k", run, read_only=True)
    if code == NO_MOUNT:
        pytest.skip("no right to mount a small disk here")
    assert code == 0
    assert "read-only: give another output folder" in told.read_text()


@pytest.mark.parametrize(("number", "says"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_the_same_where_no_disk_can_be_mounted(tmp_path, scans, heads, monkeypatch, number, says):
    real, calls = os.fsync, []

    def fail(handle):
        calls.append(handle)
        if len(calls) == 6:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DiffAugError, match=says):
        expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST)
    assert not [f for f in files_of(tmp_path / "out") if f.endswith(".part")]
    expand(scans, tmp_path / "out", "sdedit", heads, parameters=FAST)
    expand(scans, tmp_path / "whole", "sdedit", heads, parameters=FAST)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_the_image_itself_is_never_overwritten(tmp_path, scans, heads, monkeypatch):
    image = scans.parent / "images" / "1.png"
    before = image.read_bytes()
    with pytest.raises(DiffAugError, match="never overwritten"):
        edit(image, image, "sdedit", heads, parameters=FAST)
    with pytest.raises(DiffAugError, match=r"another kind .* end it in \.png"):
        edit(image, tmp_path / "new.jpg", "sdedit", heads, parameters=FAST)
    assert image.read_bytes() == before
