"""Which damage each extractor sees, on real images of test patients, one a patient.

python -m tests.benchmarks.extractors DATA [--extractor dinov2/ ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from monai_diffaug.backbones.extractors import Extractor, extractor
from monai_diffaug.domains import medical
from monai_diffaug.evaluation.corruptions import sight, table
from monai_diffaug.metrics import radiomics


def by_radiomics() -> Extractor:
    """Radiomic features, standardized on the whole, as an extractor."""

    def features(images: torch.Tensor) -> torch.Tensor:
        found = radiomics.features(images)
        return (found - by_radiomics.mean) / by_radiomics.std

    return Extractor("radiomics", "", 2, features)


def main() -> None:
    """Print the table for brains (FLAIR) and for children's chest films."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--extractor", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = [medical.read(given.data, name) for name in ("validation", "test")]
    for kind in ("brain mri flair", "chest x-ray of a child, pneumonia", "hand x-ray"):
        which = medical.KINDS.index(kind)
        images = torch.cat([p.images[p.kinds == which] for p in parts])[:120]
        raw = radiomics.features(images)
        by_radiomics.mean, by_radiomics.std = raw.mean(0), raw.std(0).clamp(min=1e-9)
        known = [extractor(x) for x in ("medical", "mednist", "brain_mri", *given.extractor)] + [by_radiomics()]
        print(f"\n{kind}, {len(images)} images of validation and test patients\n")
        print(table({x.name: sight(x, images) for x in known}), flush=True)


if __name__ == "__main__":
    main()
