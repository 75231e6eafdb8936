"""Time and memory of each score against torchmetrics, MONAI, prdc and pycocotools on the same features, in one run.

    python -m tests.benchmarks.metrics [--quick]

Every measurement runs in a child process of its own, forked after all libraries are loaded. Time is processor time, the
median of three (one where it takes more than five seconds); memory is the high-water mark of resident memory during the
call less what was resident before. `--quick` leaves the plain FID of 2,048 features out, which takes most of a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diffaug.metrics.detection import matched
from monai_diffaug.metrics.distribution import fid, kid
from monai_diffaug.metrics.neighbors import prdc
from monai_diffaug.metrics.similarity import ssim_of
from monai_diffaug.metrics.variety import inception_score, perceptual
from tests.metrics.test_detection import scene, theirs

Run = Callable[[], Any]


def normal(n: int, d: int, mean: float = 0.0, seed: int = 0) -> Tensor:
    return mean + torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(n: int, side: int, seed: int = 0) -> Tensor:
    x = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(x, 5, 1, 2)


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def _child(run: Run, out: Any) -> None:
    torch.set_num_threads(1)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        Path("/proc/self/clear_refs").write_text("5")
        before, times = resident("VmRSS"), []
        while len(times) < 3 and (not times or times[0] < 5):
            began = time.process_time()
            value = run()
            times.append(time.process_time() - began)
        out.send((float(value), statistics.median(times), resident("VmHWM") - before))


def measured(run: Run) -> tuple[float, float, int]:
    """Value, seconds, bytes."""
    here, there = multiprocessing.Pipe(False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(run, there))
    child.start()
    there.close()
    result = here.recv()
    child.join()
    return result


def fids(n: int, d: int) -> tuple[str, Run, dict[str, Run]]:
    from monai.metrics.fid import get_fid_score
    from torchmetrics.image.fid import _compute_fid

    a, b = normal(n, d), normal(n, d, 0.1, 1)

    def torchmetrics() -> Tensor:
        return _compute_fid(*(x for y in (a, b) for x in (y.mean(0), y.T.cov())))

    return (
        f"FID, n = {n:,}, d = {d:,}",
        lambda: fid(a, b),
        {"torchmetrics": torchmetrics, "MONAI": lambda: get_fid_score(a, b)},
    )


def kids() -> tuple[str, Run, dict[str, Run]]:
    from torchmetrics.image.kid import poly_mmd

    a, b = normal(1000, 2048), normal(1000, 2048, 0.1, 1)
    return "KID, n = 1,000, d = 2,048", lambda: kid(a, b), {"torchmetrics": lambda: poly_mmd(a, b)}


def inceptions() -> tuple[str, Run, dict[str, Run]]:
    from torchmetrics.image.inception import InceptionScore

    logits = 2 * normal(5000, 1000)

    def torchmetrics() -> Tensor:
        metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
        metric.update(logits)
        return metric.compute()[0]

    return (
        "Inception score, n = 5,000, k = 1,000",
        lambda: inception_score(logits.softmax(1)),
        {"torchmetrics": torchmetrics},
    )


def neighbors() -> tuple[str, Run, dict[str, Run]]:
    from prdc import compute_prdc

    a, b = normal(1000, 512), normal(1000, 512, 0.02, 1)
    return (
        "precision, recall, density, coverage, n = 1,000, d = 512",
        lambda: sum(prdc(a, b).values()),
        {"prdc": lambda: sum(compute_prdc(b.numpy(), a.numpy(), nearest_k=5).values())},
    )


def ssims(multiscale: bool) -> tuple[str, Run, dict[str, Run]]:
    from skimage.metrics import structural_similarity
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

    a = pictures(16, 192)
    b = 0.7 * a + 0.3 * pictures(16, 192, 1)
    one = multiscale_structural_similarity_index_measure if multiscale else structural_similarity_index_measure
    others: dict[str, Run] = {"torchmetrics": lambda: one(a, b, data_range=1.0)}
    if not multiscale:
        how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        pairs = list(zip(a[:, 0].numpy(), b[:, 0].numpy(), strict=True))
        others["scikit-image"] = lambda: np.mean([structural_similarity(x, y, **how) for x, y in pairs])
    name = f"{'MS-' if multiscale else ''}SSIM, 16 x 192 x 192"
    return name, lambda: ssim_of(a, b, (0.0, 1.0), multiscale).mean(), others


def perceptuals() -> tuple[str, Run, dict[str, Run]]:
    from torchmetrics.functional.image.lpips import _normalize_tensor, _spatial_average

    shapes = ((64, 56), (128, 28), (256, 14))
    a, b = ([normal(8 * c, s * s, seed=k).reshape(8, c, s, s) for c, s in shapes] for k in (0, 1))

    def torchmetrics() -> Tensor:
        parts = [(_normalize_tensor(x) - _normalize_tensor(y)) ** 2 for x, y in zip(a, b, strict=True)]
        return (
            torch.stack([_spatial_average(p.sum(1, keepdim=True), keep_dim=False).flatten() for p in parts])
            .sum(0)
            .mean()
        )

    return (
        "perceptual distance, 8 x 3 layers of maps",
        lambda: perceptual(a, b).mean(),
        {"torchmetrics' LPIPS, weights 1": torchmetrics},
    )


def detections(draws: int) -> tuple[str, Run, dict[str, Run]]:
    found, truth = scene(200)
    weights = np.random.default_rng(0).multinomial(200, np.full(200, 1 / 200), size=draws).astype(float)
    if not draws:
        return (
            "mAP, 200 images",
            lambda: matched(found, truth).map(),
            {"pycocotools": lambda: theirs(found, truth)[1][0]},
        )

    def ours() -> float:
        one = matched(found, truth)
        return float(np.mean([one.map(w) for w in weights]))

    def pycocotools() -> float:
        values = []
        for w in weights:
            again = [[x for x, k in zip(side, w.astype(int), strict=True) for _ in range(k)] for side in (found, truth)]
            values.append(theirs(*again)[1][0])
        return float(np.mean(values))

    return f"mAP, 200 images, {draws} bootstrap draws", ours, {"pycocotools": pycocotools}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    rows: list[Callable[[], tuple[str, Run, dict[str, Run]]]] = [
        *([] if given.quick else [lambda: fids(100, 2048)]),
        lambda: fids(1000, 96), kids, inceptions, neighbors, lambda: ssims(False), lambda: ssims(True), perceptuals,
        lambda: detections(0), lambda: detections(20),
    ]  # fmt: skip
    print("| score | against | seconds | theirs | ratio | MiB | theirs | values differ by |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        name, ours, others = row()
        value, seconds, memory = measured(ours)
        for other, run in others.items():
            v, s, m = measured(run)
            mib = [round(x / 2**20) for x in (memory, m)]
            apart = abs(v - value) / max(abs(v), 1e-12)
            times = f"{seconds:.3g} | {s:.3g} | {s / seconds:.3g}"
            print(f"| {name} | {other} | {times} | {mib[0]} | {mib[1]} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
