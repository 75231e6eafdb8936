"""The three sets of chest X-rays, made up."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image


def three_sets(folder: Path) -> Path:
    """Write ``mednist6``, ``cxr_pneumonia28`` and ``cxr_covid`` in their layout, a few films of noise each."""
    rng = np.random.default_rng(0)
    films = rng.integers(0, 256, (60, 64, 64), dtype=np.uint8)
    for name in ("mednist6", "cxr_pneumonia28", "cxr_covid/dev/images"):
        (folder / name / ("" if "/" in name else "dev")).mkdir(parents=True)
    np.savez(folder / "mednist6/dev/images.npz", images=films)
    with (folder / "mednist6/dev/labels.csv").open("w") as f:
        csv.writer(f).writerows([["index", "label"], *[[i, "CXR" if i % 2 else "Hand"] for i in range(60)]])
    small = rng.integers(0, 256, (80, 28, 28), dtype=np.uint8)
    small[1] = small[0]
    np.savez(folder / "cxr_pneumonia28/dev/dev.npz", images=small, labels=np.arange(80) % 4 > 0)
    columns = ("file", "patient", "finding", "view", "sex", "report", "license", "doi")
    rows = []
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (80, 80), dtype=np.uint8)).save(folder / f"cxr_covid/dev/images/{i}.png")
        finding, view = ("COVID-19", "AP Supine") if i % 3 else ("No Finding", "PA")
        license_of = "CC BY-NC-SA" if i % 4 == 0 else "CC BY 4.0"
        report = "Hazy infiltrates in both lungs. No fever 39.1 today" if i % 5 == 1 else ""
        rows.append((f"images/{i}.png", f"p{i // 2}", finding, view, "MF"[i % 2], report, license_of, "10.1/x"))
    with (folder / "cxr_covid/dev/labels.csv").open("w", newline="") as f:
        csv.writer(f).writerows([columns, *rows])
    return folder
