"""A run as `diffaug expand` writes it, and judgments in the agreed form, with numbers made up."""

from __future__ import annotations

import json
import random
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

RECORD = {
    "backbone": "brain_mri",
    "backbone_digest": "a11f547e1f7e" * 5,
    "prompt": None,
    "version": "0.1.0",
    "synthetic": True,
}
SECRET = "DOE_JANE_1950"
SIDE = 40


def head(rng, lesion, side=SIDE):
    """An ellipse with folds of its own and perhaps a bright spot, and the spot's mask, 8 bits each."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    inside = (x / rng.uniform(0.28, 0.4)) ** 2 + (y / rng.uniform(0.36, 0.46)) ** 2 < 1
    spot = ((x - rng.uniform(-0.1, 0.1)) ** 2 + (y - rng.uniform(-0.1, 0.1)) ** 2 < 0.012) & lesion
    folds = sum(np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(-4, 4, (5, 3)))
    gray = inside * (100 + 16 * folds + 8 * rng.random((side, side))) + spot * 90
    return gray.clip(0, 255).astype(np.uint8), (spot * 255).astype(np.uint8)


def save(folder, name, array):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return name


def slices(folder, n=8, patient=SECRET, **more):
    """A run of ``n`` slices of patients named after ``patient``; the files of the sources bear the name too."""
    rng, run, entries = np.random.default_rng(0), Path(folder) / "run", []
    for i in range(n):
        who, lesion = f"{patient}_{i // 2}", bool(i % 2)
        real, mask = head(rng, lesion)
        made = np.clip(real + rng.normal(0, 12, real.shape), 0, 255).astype(np.uint8)
        stem = f"{who}_{i:02d}"
        save(Path(folder), f"real/images/{stem}.png", real)
        save(Path(folder), f"real/masks/{stem}.png", mask)
        image = save(run, f"images/{stem}_da_fusion_1.png", made)
        save(run, f"masks/{stem}_da_fusion_1.png", mask)
        kind = ("healthy", "tumor")[lesion]
        record = {"method": "da_fusion", **RECORD, "seed": 1000 + i, "parameters": {"label": kind, "scale": 3.0}}
        record |= {"source": f"images/{stem}.png", "label": kind, "scores": {"strength": 0.25 * (1 + i % 4)}}
        entry = {"image": image, "class": kind, "label": f"masks/{stem}_da_fusion_1.png", "patient": who}
        entry |= {"synthetic": True, "source": f"../real/images/{stem}.png", "provenance": record}
        entries.append(entry | {"source_mask": f"../real/masks/{stem}.png"} | more)
        about = {"synthetic": True, "generator": "monai-diffaug", "method": "da_fusion", "seed": 1000 + i}
        (run / image).with_suffix(".json").write_text(json.dumps({**about, "versions": {"monai-diffaug": "0.1.0"}}))
    data = {"description": "Synthetic images", "synthetic": True, "backbone": "brain_mri"}
    data |= {"backbone_digest": RECORD["backbone_digest"], "licence": "CC BY-NC-SA 4.0", "numTraining": n}
    (run / "datalist.json").write_text(json.dumps({**data, "training": entries}))
    (run / "job.json").write_text(json.dumps({"format": 1, "seed": 0, "keep": {}, "copies": 1}))
    return run


def volumes(folder, n=2, size=(24, 30, 12), spacing=(1.0, 1.0, 3.0)):
    """A run of volumes whose voxels say where they are: 8 bits, brighter to the left, the back and the top."""
    run, entries = Path(folder) / "run", []
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # stored as LPS
    x, y, z = np.mgrid[: size[0], : size[1], : size[2]]
    values = (2 * x + 3 * y + 9 * z).astype(np.uint8)
    for i in range(n):
        for name, array in ((f"real/v{i}.nii.gz", values), (f"run/images/v{i}_sdedit_1.nii.gz", values + np.uint8(7))):
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), path)
        record = {"method": "sdedit", **RECORD, "seed": i, "parameters": {}, "scores": {}}
        entry = {"image": f"images/v{i}_sdedit_1.nii.gz", "patient": f"P{i}", "source": f"../real/v{i}.nii.gz"}
        entries.append({**entry, "synthetic": True, "provenance": record})
    (run / "datalist.json").write_text(json.dumps({"synthetic": True, "training": entries}))
    return run


# ---------------------------------------------------------------------------------------------------------- judgments


def score(name, value, ends, floor, floor_ends, good, extractor="judge of brain_mri (2 classes)", n=30):
    s = {"name": name, "value": value, "interval": ends, "floor": floor, "floor_interval": floor_ends, "n": n}
    inside = value <= floor_ends[1] if good == "low" else floor_ends[0] <= value <= floor_ends[1]
    return {**s, "extractor": extractor, "good": good, "within_floor": inside}


def scores(**more):
    """One score within its floor, one farther from real, one with too little variety."""
    rows = [
        score("kid", 0.18, [-0.06, 0.89], 0.24, [-0.07, 1.25], "low"),
        score("fid", 14.2, [12.1, 16.0], 4.2, [0.8, 12.5], "low"),
        score("perceptual_diversity", 1.44, [1.32, 1.6], 2.15, [1.67, 2.63], "floor"),
        score("anatomy_body", 0.4, [0.2, 0.6], 0.46, [0.23, 0.88], "low", extractor=""),
    ]
    groups = []
    for sex, shift in (("F", 0.0), ("M", 0.3), ("gap", 0.1)):
        groups.append(
            {"attribute": "sex", "group": sex, "n": 14, "score": "kid", "value": 0.1 + shift,
             "interval": [0.0, 0.2 + shift], "floor": 0.1, "floor_interval": [0.0, 0.3]}
        )  # fmt: skip
    said = {"real": "real.json", "synthetic": "run", "n_real": 77, "n_synthetic": 60, "dims": 2, "size": 96}
    said |= {
        "extractors": [{"name": "judge of brain_mri (2 classes)", "sha256": "f" * 64}],
        "skipped": [],
        "notes": ["Few images."],
        "seed": 0,
    }
    return {**said, "scores": rows, "groups": groups, **more}


def section(verdict, says, **figures):
    rows = {k: {"value": v, "interval": [v - 0.05, v + 0.05], "control": 0.5, "bar": 0.6} for k, v in figures.items()}
    return {"verdict": verdict, "says": says, "figures": rows}


def audit(pairs=(), verdict="pass", **sections):
    told = {
        "copies": section("pass", "No image is a copy of a training image.", share=0.01),
        "reidentification": section("pass", "No patient is recognized more often than strangers are.", auroc=0.52),
        "membership": section("pass", "Training patients cannot be told from others.", auroc=0.55),
        "extraction": section("not judged", "No model was given."),
        "attributes": section("pass", "Sex and age cannot be read off better than by chance.", auroc=0.5),
        "fairness": section("pass", "Groups differ by no more than real images do.", gap=0.1),
        **sections,
    }
    return {"verdict": verdict, "sections": told, "pairs": list(pairs), "limitations": ["The verifier is weak."]}


ARMS = (
    ("real", "real"), ("classical", "classical"), ("mixup", "mixup"), ("cutmix", "cutmix"),
    ("da_fusion", "diffusion"), ("sdedit", "diffusion"), ("synthetic only", "synthetic_only"),
    ("pre-trained", "pretraining"), ("duplicated", "duplicated"),
)  # fmt: skip


def utility(gain=0.05, p=0.01, patients=(5, 10, 20, "all")):
    """A study in which da_fusion gains ``gain`` over classical augmentation, at a corrected chance of ``p``."""
    rng, results, compared = random.Random(0), [], []
    shift = {"real": -0.05, "classical": 0.0, "da_fusion": gain, "synthetic only": -0.12, "duplicated": -0.05}
    for arm, kind in ARMS:
        for i, n in enumerate(patients):
            for seed in range(3):
                value = 0.7 + 0.06 * i + shift.get(arm, -0.01) * (4 - i) / 4 + rng.uniform(-0.02, 0.02)
                made = 0.0 if kind in ("real", "classical", "mixup", "cutmix") else 1.0
                groups = {"sex": {"F": {"auroc": value + 0.01}, "M": {"auroc": value - 0.01}}}
                results.append(
                    {"arm": arm, "patients": n, "ratio": made, "seed": seed, "images": 40,
                     "metrics": {"auroc": value, "f1": value - 0.1}, "per_class": {}, "per_group": groups}
                )  # fmt: skip
            if arm != "classical":
                d = shift.get(arm, -0.01) * (4 - i) / 4
                sure = arm == "da_fusion" and i < 2
                compared += [
                    {"arm": arm, "control": "classical", "patients": n, "ratio": made, "metric": m, "difference": d,
                     "interval": [d - 0.03, d + 0.03], "p": 0.001 if sure else 0.4,
                     "p_corrected": p if sure else 1.0, "n_patients": 13} for m in ("auroc", "f1")
                ]  # fmt: skip
    checks = [
        {"arm": "duplicated", "kind": "duplicated", "patients": n, "expected": "no difference", "seen": seen,
         "as_expected": seen == "no difference", "difference": 0.0, "interval": [-0.1, 0.1]}
        for n, seen in ((5, "no difference"), (10, "hurts"))
    ]  # fmt: skip
    return {
        "checks": checks, "lower_is_better": [],
        "study": "tumor or not", "task": "classification", "metrics": ["auroc", "f1"],
        "arms": [{"name": a, "kind": k} for a, k in ARMS], "results": results, "comparisons": compared,
        "generator": {"name": "brain_mri", "digest": "a11f547e1f7e", "patients_seen": 55},
        "limitations": ["13 test patients."], "seconds": 100.0,
    }  # fmt: skip


def readers(told_apart=False):
    low, high = (0.85, 0.95) if told_apart else (0.44, 0.56)
    share = {"value": (low + high) / 2, "interval": [low, high], "n": 300}
    one = {"n": 300, "auroc": {k: share[k] for k in ("value", "interval")}, "accuracy": share, "undecided": 0.1}
    one |= {"sensitivity": share, "specificity": share, "not_told_apart": not told_apart}
    marks = {"real": {"mean": 3.9, "n": 40, "counts": [1, 3, 8, 15, 13]}}
    marks["synthetic"] = {"mean": 3.6, "n": 40, "counts": [2, 5, 10, 13, 10]}
    captions = {"sensitivity": share, "specificity": share}
    agreement = {
        "origin": {
            "intra_reader": {"kappa": 0.6, "interval": [0.4, 0.7], "n": 16},
            "fleiss": {"kappa": 0.2, "n": 40, "readers": 2},
        }
    }
    return {
        "readers": {"Dr. Anna Example": one, "Dr. Bert Example": one}, "pooled": one,
        "marks": {"realism": marks, "detail": marks}, "agreement": agreement, "captions": captions, "seconds": 3.0,
    }  # fmt: skip


def put(run, **parts):
    """Write judgments into a run's folder."""
    for name, data in parts.items():
        (run / f"{name}.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return run
