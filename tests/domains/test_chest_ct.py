"""Chest CT: parts of patients, doses spread over items, a U-Net that sees no further than its convolutions."""

import json

import pytest
import torch
from monai.networks.nets import DiffusionModelUNet

from monai_diffaug import domains
from monai_diffaug.backbones.monai_unet import MonaiUNet
from monai_diffaug.domains import chest_ct
from monai_diffaug.types import DiffAugError


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "ct_tcga_lung" / "dev"
    (folder / "dicom").mkdir(parents=True)
    (folder / "dicom" / "3.dcm").touch()
    head = "file,dicom,patient,pixel_mm_256,contrast\n"
    rows = [f"images/{i}.png,dicom/{i}.dcm,P{i // 2},1.5,{i % 2}\n" for i in range(80)]
    (folder / "labels.csv").write_text(head + "".join(rows))
    return tmp_path


def test_patients_are_in_one_part_and_no_test_patient_is_trained_on(data):
    parts = {p: {i["patient"] for i in chest_ct.items(data, p)} for p in ("train", "validation", "test")}
    assert all(parts.values())
    assert sum(len(p) for p in parts.values()) == len(set.union(*parts.values())) == 40
    for patient in parts["train"] | parts["validation"]:
        assert domains.part_of(patient) != "test"
    assert len(chest_ct.items(data)) == 80
    assert json.dumps(chest_ct.items(data))
    assert [i["dicom"].endswith("3.dcm") for i in chest_ct.items(data) if "dicom" in i] == [True]


def test_doses_are_spread_for_every_item(data):
    items = chest_ct.repeated(chest_ct.items(data), 4, (0.05, 0.4))
    assert len(items) == 320
    assert len({i["seed"] for i in items}) == 320
    for first in range(0, 320, 4):
        doses = [i["dose"] for i in items[first : first + 4]]
        assert doses == sorted(doses)
        assert 0.05 <= doses[0] < 0.09 < doses[3] <= 0.4
    assert {i["dose"] for i in chest_ct.repeated(chest_ct.items(data), 1, (0.1, 0.1))} == {0.1}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DiffAugError, match="give the folder that holds ct_tcga_lung"):
        chest_ct.items(tmp_path)


def test_a_window_of_a_slice_is_seen_as_alone():
    torch.manual_seed(0)
    module = DiffusionModelUNet(
        spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 8), attention_levels=(False, False),
        num_res_blocks=1, num_head_channels=8, norm_num_groups=4,
    )  # fmt: skip
    for p in module.parameters():
        torch.nn.init.normal_(p, 0, 0.1) if not bool(p.any()) else None
    attention = module.middle_block.attention
    x = torch.randn(1, 8, 4, 4)
    assert not torch.allclose(attention(x), x)
    network = chest_ct.local(MonaiUNet(module))
    torch.testing.assert_close(attention(x), x)
    assert [n for n, p in network.module.named_parameters() if not p.requires_grad] == [
        f"middle_block.attention.attn.out_proj.{k}" for k in ("weight", "bias")
    ]
