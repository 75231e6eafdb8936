"""How well the audit finds copies, and what it says of the shipped backbone: on real patients.

    python -m tests.benchmarks.auditing DATA [--seeds 2]       copies: recall and false alarms
    python -m tests.benchmarks.auditing DATA --model           the backbone on its training patients

``DATA`` is the folder that holds brain_lgg_2d, brain_lgg_3d and mednist6. Lines are drawn on validation patients and
figures are of test patients. MedNIST does not say whose its images are: near-duplicates may be on both sides.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from monai_diffaug.audit.asking import drawn, round_trip
from monai_diffaug.audit.audit import few_of
from monai_diffaug.audit.calibration import CHANGES, changed, false_alarms
from monai_diffaug.audit.copies import CopyFinder
from monai_diffaug.audit.copying import copying
from monai_diffaug.audit.membership import membership
from monai_diffaug.audit.recognition import Patients
from monai_diffaug.backbones import hub
from monai_diffaug.backbones.extractors import extractor
from monai_diffaug.domains import brain_mri, mednist, part_of


def slices_2d(data: Path) -> Patients:
    """FLAIR slices of brain_lgg_2d at 96 x 96."""
    folder = data / "brain_lgg_2d" / "dev"
    rows = list(csv.DictReader((folder / "labels.csv").open()))
    x = torch.stack([torch.from_numpy(np.array(Image.open(folder / r["file"]))[..., 1]).float()[None] for r in rows])
    small = F.interpolate(brain_mri.onto_range(x), (96, 96), mode="area")
    return Patients(small, tuple(r["patient"] for r in rows), tuple(r["file"] for r in rows))


def films(data: Path) -> Patients:
    """Chest X-rays of MedNIST."""
    found = mednist.read(data)
    which = [i for i, m in enumerate(found.modalities) if m == "chest x-ray"]
    names = tuple(found.sources[i] for i in which)
    return Patients(found.images[which], names, names)


def part(given: Patients, name: str) -> Patients:
    """``train``, ``validation`` or ``test``."""
    return given.only([part_of(p) == name for p in given.patients])


def copies(given: Patients, backbone: str, seeds: int) -> dict[str, object]:
    """Recall of each change and false alarms on test patients."""
    train, validation, test = (part(given, p) for p in ("train", "validation", "test"))
    finder = CopyFinder(train.images, validation.images, extractor("mednist"), train.ids)
    found: dict[str, object] = {
        "images": [len(p.ids) for p in (train, validation, test)],
        "patients": [len(set(p.patients)) for p in (train, validation, test)],
        "false_alarms": round(float(np.mean([f.copy for f in finder(test.images)])), 4),
    }
    rows: dict[str, list[float]] = {c: [] for c in (*CHANGES, "round trip")}
    for seed in range(seeds):
        which = torch.randperm(len(train.ids), generator=torch.Generator().manual_seed(seed))[:60]
        some = train.images[which]
        for change in rows:
            shown = round_trip(hub.load(backbone), some) if change == "round trip" else changed(some, change, seed)
            rows[change].append(float(np.mean([f.copy for f in finder(shown)])))
    alarms, n = false_alarms(finder, validation.patients)
    return {**found, "cross_validated": round(alarms / n, 4), "recall": rows}


def shipped(data: Path, most: int, samples: int) -> dict[str, object]:
    """What the audit says of the shipped brain_mri: its training patients against those that it never saw."""
    model = hub.load("brain_mri", precision=torch.float32)
    read = brain_mri.read(data)
    known = Patients(read.images, read.patients, read.sources)
    kinds = {s: (brain_mri.LABELS[int(k)] if k >= 0 else "") for s, k in zip(read.sources, read.labels, strict=True)}
    train, validation, test = (part(known, p) for p in ("train", "validation", "test"))
    members, others = few_of(train, most)[0], few_of(validation.joined(test), most)[0]
    told = [kinds[i] for i in members.ids], [kinds[i] for i in others.ids]
    attack = membership(model, members, others, told)
    pool = [kinds[i] for i in train.ids]
    made = drawn(model, [pool[(7 * i) % len(pool)] for i in range(samples)])
    ours = Patients(made, ("",) * samples, tuple(map(str, range(samples))))
    section, pairs = copying(
        few_of(train, 600)[0], few_of(validation.joined(test), 200)[0], ours, extractor("mednist"), 0.02,
        lambda x: round_trip(model, x),
    )  # fmt: skip
    said = section.to_dict()
    return {"membership": attack.to_dict(), "copies": {k: v for k, v in said.items() if k != "found"}, "pairs": pairs}


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--most", type=int, default=200)
    parser.add_argument("--samples", type=int, default=128)
    asked = parser.parse_args()
    if asked.model:
        found = shipped(asked.data, asked.most, asked.samples)
    else:
        found = {
            "brain_lgg_2d": copies(slices_2d(asked.data), "brain_mri", asked.seeds),
            "mednist chest x-ray": copies(films(asked.data), "mednist", asked.seeds),
        }
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
