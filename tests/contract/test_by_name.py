"""Every method that makes images can be named in a bundle's config, and every heading has its place in the survey."""

import pytest
import torch
from monai.bundle import ConfigParser

from monai_diffaug import registry
from monai_diffaug.testing import case_for
from monai_diffaug.transforms import RandDiffusionAugmentd

HEADINGS = {
    "semantic": {"concept", "text_guided", "layout", "image_to_image", "counterfactual"},
    "personalization": {"subject", "adaptation", "inversion", "expansion"},
    "application": {"medical", "faces", "fashion", "agriculture", "video", "heritage", "detection"},
}
METHODS = registry.listing()


@pytest.mark.parametrize("entry", [m for m in METHODS if m.shape != "learn"], ids=lambda m: m.name)
def test_a_bundles_config_builds_it(entry):
    case = case_for(entry)
    own = {k: v for k, v in case.but(batch=1).arguments().items() if k in registry.parameters(entry)}
    constants = {k: v for k, v in own.items() if isinstance(v, str | int | float | list | tuple)}
    keys = {f"{k}_key": k for k, v in own.items() if isinstance(v, torch.Tensor)}
    config = {
        "augment": {
            "_target_": "monai_diffaug.transforms.RandDiffusionAugmentd",
            "keys": ["image"],
            "method": entry.name,
            "backbone": "@backbone",
            "prob": 0.5,
            **{k: v for k, v in own.items() if k not in constants and not isinstance(v, torch.Tensor)},
            **constants,
            **keys,
        },
        "backbone": case.backbone,
    }
    built = ConfigParser(config).get_parsed_content("augment")
    assert isinstance(built, RandDiffusionAugmentd)
    assert built.augment.runner.entry is entry


@pytest.mark.parametrize("entry", METHODS, ids=lambda m: m.name)
def test_its_folder_is_a_heading_of_the_survey(entry):
    chapter, _, section = entry.heading.partition("/")
    assert section in HEADINGS[chapter]


def test_there_are_fifteen_methods_of_three_shapes():
    """None yet takes a whole data set: methods of shape ``expand`` come with the section on growing one."""
    assert {"generate", "edit", "learn"} <= {m.shape for m in METHODS}
    assert len(METHODS) >= 15
