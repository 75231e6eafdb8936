"""The transforms from a bundle's config, run by MONAI's own command line in a process of its own."""

import json
import os
import subprocess
import sys

import torch

from monai_diffaug.backbones import hub
from monai_diffaug.io import datalist
from monai_diffaug.provenance import Record
from monai_diffaug.testing import tiny

KEYS = ["image", "label"]


def test_monai_bundle_run(tmp_path):
    backbone = tiny("class_mask", 2, 16)
    folder = hub.save(backbone, tmp_path / "checkpoint")
    items = [{"image": str(i.image), "label": str(i.mask)} for i in datalist.read("brain_mri")[:2]]
    config = {
        "imports": ["$import torch"],
        "data": items,
        "transform": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": KEYS},
                {"_target_": "EnsureChannelFirstd", "keys": KEYS},
                {
                    "_target_": "monai_diffaug.transforms.RandDiffusionAugmentd",
                    "keys": KEYS,
                    "method": "da_fusion",
                    "backbone": str(folder),
                    "prob": 1.0,
                    "strength": 0.5,
                    "steps": 2,
                },
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@transform"},
        "loader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 2, "num_workers": 1},
        "out": str(tmp_path / "out.pt"),
        "run": [
            "$monai.utils.set_determinism(0)",
            "$torch.save([{'image': b['image'].as_tensor(), 'label': b['label'].as_tensor(), "
            "'meta': b['image'].meta['diffaug']} for b in @loader], @out)",
        ],
    }
    config["imports"].append("$import monai")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (batch,) = torch.load(tmp_path / "out.pt")
    assert batch["image"].shape == (2, 1, 128, 128)
    records = [Record.from_json(m) for m in batch["meta"]]
    assert [r.method for r in records] == ["da_fusion"] * 2
    assert [r.parameters["label"] for r in records] == ["tumor", "healthy"], "told what the masks say"
    assert [r.source for r in records] == [i["image"] for i in items]
    assert [bool(m.any()) for m in batch["label"]] == [True, False]
    assert {r.backbone_digest for r in records} == {hub.load(folder).digest}
