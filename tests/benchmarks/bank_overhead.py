"""What the bank costs a data loader: the same loader with and without it, in turns.

    python -m tests.benchmarks.bank_overhead [--rounds 15] [--items 240] [--workers 0 2] [--most 0.05]

The pool is made by `expand` from the package's brain slices. `before` puts the bank before `LoadImaged`; `after` puts
it behind a `CacheDataset`'s cache, where the variants come from the memory-mapped file. A round times both loaders over
one epoch, in alternating order, and gives one ratio of wall-clock and one of processor seconds (of the workers too,
where the system tells); reported are the median of the rounds and its 90 % interval by bootstrap. Judged is processor
time, which other jobs on the machine disturb less: exit code 1 if the median of any setting is above the limit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandFlipd, RandRotated, ScaleIntensityd

from monai_diffaug.expand import expand
from monai_diffaug.io import datalist
from monai_diffaug.testing import tiny
from monai_diffaug.transforms import RandBankDrawd

KEYS = ["image", "label"]


def pool(folder: Path, copies: int) -> tuple[Path, list[dict[str, str]]]:
    """An expanded folder, and the real items that it was made from."""
    out = folder / "pool"
    expand("brain_mri", out, "sdedit", tiny("class_mask", 2, 16), parameters={"steps": 2}, copies=copies)
    return out, [{"image": str(i.image), "label": str(i.mask)} for i in datalist.read("brain_mri")]


def loaders(out: Path, real: Sequence[dict[str, str]], where: str, workers: int, items: int) -> list[DataLoader]:
    """Without the bank, and with it."""
    data = [real[i % len(real)] for i in range(items)]
    steady = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), ScaleIntensityd("image")]
    shaken = [
        RandFlipd(KEYS, prob=0.5, spatial_axis=0),
        RandRotated(KEYS, prob=0.5, range_x=0.3, mode=["bilinear", "nearest"]),
    ]
    options = {"batch_size": 16, "num_workers": workers, "persistent_workers": workers > 0}
    if where == "before":
        bank = RandBankDrawd(KEYS, out, prob=0.5)
        sets = [Dataset(data, Compose([*steady, *shaken])), Dataset(data, Compose([bank, *steady, *shaken]))]
    else:
        bank = RandBankDrawd(KEYS, out, prob=0.5, prepare=steady).fill()
        cached = {"cache_num": len(data), "progress": False}
        sets = [
            CacheDataset(data, Compose([*steady, *shaken]), **cached),
            CacheDataset(data, Compose([*steady, bank, *shaken]), **cached),
        ]
    return [DataLoader(s, **options) for s in sets]


def epoch(loader: DataLoader) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    began, spent = time.perf_counter(), _processor(loader)
    for _ in loader:
        pass
    return time.perf_counter() - began, _processor(loader) - spent


def _processor(loader: DataLoader) -> float:
    """Seconds that this process and the loader's workers have used."""
    total = time.process_time()
    for worker in getattr(loader._iterator, "_workers", []):
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def ratios(pair: Sequence[DataLoader], rounds: int) -> np.ndarray:
    """(rounds, 2): with / without, of wall-clock and of processor time."""
    for loader in pair:
        epoch(loader)
    found = []
    for i in range(rounds):
        order = (0, 1) if i % 2 else (1, 0)
        took = {k: epoch(pair[k]) for k in order}
        found.append([b / a for a, b in zip(took[0], took[1], strict=True)])
    return np.asarray(found)


def spread(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Median and its 90 % interval."""
    draws = np.random.default_rng(seed).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.05, 0.95])
    return float(np.median(values)), float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--items", type=int, default=240)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--where", nargs="+", default=["before", "after"], choices=["before", "after"])
    parser.add_argument("--most", type=float, default=0.05, help="overhead that is allowed")
    given = parser.parse_args(arguments)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        out, real = pool(Path(folder), given.copies)
        for where in given.where:
            for workers in given.workers:
                found = ratios(loaders(out, real, where, workers, given.items), given.rounds)
                for column, kind in enumerate(("wall", "cpu")):
                    median, low, high = spread(found[:, column])
                    print(f"{where:6} workers {workers} {kind:4} x{median:.3f} (90 % interval {low:.3f} to {high:.3f})")
                worst = max(worst, median - 1)
    print(f"largest overhead {100 * worst:+.1f} %, allowed {100 * given.most:.0f} %")
    return int(worst > given.most)


if __name__ == "__main__":
    sys.exit(main())
