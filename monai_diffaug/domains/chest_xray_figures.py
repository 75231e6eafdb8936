"""What chest X-rays made from prompts are worth: do judges of real films see what was asked for, and are they new."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import SSIMMetric
from PIL import Image, ImageDraw
from torch import Tensor

from ..backbones.judge import Judge
from ..metrics.distribution import copies, floored, kid
from ..primitives import guidance, plans
from ..primitives.reconstruction import psnr
from ..primitives.sampler import sample
from ..types import Autoencoder, Backbone, NoiseSource
from . import chest_xray

__all__ = ["PAIRS", "agreement", "drawn", "evaluate", "pictures", "real_figures", "round_trip", "separated"]

PAIRS: Mapping[str, tuple[str, tuple[str, str]]] = {
    "finding, coarse": (
        "finding",
        ("a coarse normal chest x-ray of a child", "a coarse chest x-ray of a child with pneumonia"),
    ),
    "finding, sharp child": (
        "finding",
        ("a normal chest x-ray of a child", "a chest x-ray of a child with pneumonia"),
    ),
    "finding, sharp": ("finding", ("a normal chest x-ray", "a chest x-ray with pneumonia")),
    "view": ("view", ("a pa chest x-ray with covid-19 pneumonia", "an ap supine chest x-ray with covid-19 pneumonia")),
    "view, said alone": ("view", ("a pa chest x-ray", "an ap supine chest x-ray")),
}
"""Two prompts that differ in one thing, and what is judged; the judge's classes are in the prompts' order."""


def drawn(backbone: Backbone, prompts: Sequence[str], *, seed: int = 0, scale: float = 3.0, steps: int = 20) -> Tensor:
    """One image (C, *S) for each prompt, in the value range: (N, C, *S). Image i has seed ``seed * 1_000_003 + i``."""
    contract, plan, made = backbone.contract, plans.make(backbone.schedule, steps), []
    with torch.no_grad():
        for a in range(0, len(prompts), 16):
            some = list(prompts[a : a + 16])
            noise = NoiseSource(seed * 1_000_003 + a + i for i in range(len(some)))
            like = torch.empty(len(some), contract.latent_channels, *contract.latent_size, device=backbone.device)
            denoise = guidance.classifier_free(
                backbone, backbone.condition(len(some), prompt=some), scale, batch=len(some)
            )
            z = sample(denoise, plan[0].level.sigma * noise.normal(like), plan, noise=noise)
            made.append(backbone.decode(z).clamp(*contract.value_range).cpu())
    return torch.cat(made)


def round_trip(autoencoder: Autoencoder, images: Tensor) -> dict[str, float]:
    """What is left of images (N, 1, H, W) in [-1, 1] after the autoencoder: RMSE (of 1), PSNR (dB) and SSIM."""
    ssim = SSIMMetric(2, data_range=1.0)
    with torch.no_grad():
        back = torch.cat([autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1) for x in images.split(32)])
        a, b = (images + 1) / 2, (back.mean(1, keepdim=True) + 1) / 2
        a = a.mean(1, keepdim=True)
        rmse = (a - b).pow(2).flatten(1).mean(1).sqrt()
        likeness = torch.cat([ssim(x, y) for x, y in zip(a.split(64), b.split(64), strict=True)])
    return {"rmse": float(rmse.mean()), "psnr": float(psnr(a, b, 1.0).mean()), "ssim": float(likeness.mean())}


def separated(features: Tensor, classes: Tensor) -> float:
    """Mean silhouette (Rousseeuw 1987) of features (N, D) with classes (N,), by cosine distance, in [-1, 1]."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    distance = 1 - unit @ unit.T
    found = []
    for i in range(len(unit)):
        same = (classes == classes[i]).clone()
        same[i] = False
        others = [distance[i, classes == c].mean() for c in classes.unique() if c != classes[i]]
        a, b = distance[i, same].mean(), torch.stack(others).min()
        found.append((b - a) / torch.maximum(a, b).clamp(min=1e-12))
    return float(torch.stack(found).mean())


# ------------------------------------------------------------------------------------------------------------ judges


def seen(judges: Mapping[str, Judge], what: str, images: Tensor) -> Tensor:
    """Which of the two classes a judge sees in images (N, 1, H, W): (N,) of 0 and 1."""
    with torch.no_grad():
        judge = judges["finding" if what == "finding" else "kind"]
        scores = torch.cat([judge.logits(x) for x in images.split(64)])
    first = judge.labels.index("normal" if what == "finding" else "pa")
    return scores[:, first : first + 2].argmax(1)


def agreement(told: Tensor, said: Tensor, seed: int = 0, draws: int = 1000) -> dict[str, Any]:
    """How often ``said`` (N,) is what was ``told`` (N,), with a bootstrap interval of 95 %; and told in shuffled order.

    The shuffled figure is the mean over as many permutations, with the range that holds 95 % of them.
    """
    right = (told == said).float()
    generator = torch.Generator().manual_seed(seed)
    n = len(told)
    boot = right[torch.randint(n, (draws, n), generator=generator)].mean(1)
    mixed = torch.stack([(told[torch.randperm(n, generator=generator)] == said).float().mean() for _ in range(draws)])
    ends = torch.tensor([0.025, 0.975])
    return {
        "agreement": float(right.mean()),
        "interval": [float(x) for x in torch.quantile(boot, ends)],
        "shuffled": float(mixed.mean()),
        "shuffled_interval": [float(x) for x in torch.quantile(mixed, ends)],
        "n": n,
    }


def _auroc(scores: Tensor, positive: Tensor) -> float:
    order = scores.argsort()
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    p = int(positive.sum())
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * (len(scores) - p)))


def real_figures(judges: Mapping[str, Judge], films: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How good the judges are on real films that nobody was trained on."""
    out: dict[str, Any] = {}
    for name, target in (("finding", "label"), ("kind", "kind")):
        known = [f for f in films if f[target] >= 0]
        classes = torch.tensor([int(f[target]) for f in known])
        images = torch.stack([f["image"] for f in known])
        with torch.no_grad():
            scores = torch.cat([judges[name].classify(x) for x in images.split(64)])
        right = scores.argmax(1) == classes
        each = {judges[name].labels[int(c)]: float(right[classes == c].float().mean()) for c in classes.unique()}
        out[name] = {"balanced_accuracy": sum(each.values()) / len(each), "each": each, "n": len(known)}
        if name == "finding":
            out[name]["auroc"] = _auroc(scores[:, 1], classes == 1)
    views = [f for f in films if f["view"]]
    found = seen(judges, "view", torch.stack([f["image"] for f in views]))
    told = torch.tensor([("pa", "ap supine").index(f["view"]) for f in views])
    out["view"] = {"accuracy": float((found == told).float().mean()), "n": len(views)}
    return out


# ---------------------------------------------------------------------------------------------------------- evaluate


def _detail(images: Tensor) -> float:
    """Root mean square of what films lose when they are stored with 28 pixels: what sharp ones have and coarse lack."""
    return float((images - chest_xray.coarse(images)).pow(2).mean().sqrt())


def _alike(images: Tensor, n: int = 24) -> float:
    """Mean SSIM of pairs of images (N, 1, H, W): 1 if all are one."""
    some = (images[:n] + 1) / 2
    i, j = torch.triu_indices(len(some), len(some), 1)
    return float(SSIMMetric(2, data_range=1.0)(some[i], some[j]).mean())


def evaluate(
    backbone: Backbone,
    kind_judge: Judge,
    data: Path | str,
    *,
    images: int = 32,
    seeds: Sequence[int] = (1, 2),
    scale: float = 3.0,
    steps: int = 20,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All figures, on test films (for the small sets and the second judge on validation films too).

    Args:
        backbone: with its own judge of findings.
        kind_judge: of where a film is from and of its view.
        data: the folder that holds the three sets.
        images: of each prompt and seed.
        seeds: of the samples.
        scale: of guidance.
        steps: network calls for an image.

    Returns:
        figures that JSON can hold, and the images made, by prompt.
    """
    judges = {"finding": backbone.judge, "kind": kind_judge}
    unseen = chest_xray.films([*chest_xray.items(data, "validation"), *chest_xray.items(data, "test")])
    test = chest_xray.films(chest_xray.items(data, "test"))
    trained = chest_xray.films(chest_xray.items(data, "train"))
    by = {s: _of(unseen, s) for s in ("mednist6", "cxr_covid", "cxr_pneumonia28")}
    out: dict[str, Any] = {
        "settings": {"images": images, "seeds": list(seeds), "scale": scale, "steps": steps},
        "round_trip": {s: round_trip(backbone.autoencoder, x) for s, x in by.items()},
        "judges_on_real": {
            **real_figures({**judges}, unseen),
            "finding_on_test": real_figures(judges, test)["finding"],
        },
        "agreement": {},
    }
    made: dict[str, Tensor] = {}
    for name, (what, prompts) in PAIRS.items():
        told = torch.tensor([0, 1]).repeat_interleave(images)
        asked = [prompts[int(t)] for t in told]
        rows = [drawn(backbone, asked, seed=s, scale=scale, steps=steps) for s in seeds]
        for i, prompt in enumerate(prompts):
            made[prompt] = torch.cat([r[i * images : (i + 1) * images] for r in rows])
        said = [seen(judges, what, r) for r in rows]
        out["agreement"][name] = {
            **agreement(told.repeat(len(seeds)), torch.cat(said)),
            "by_seed": {str(s): float((told == x).float().mean()) for s, x in zip(seeds, said, strict=True)},
        }
    plain_prompt = "a chest x-ray"
    made[plain_prompt] = drawn(backbone, [plain_prompt] * (images * 2), seed=seeds[0], scale=1.5, steps=steps)
    out["detail"] = {p: _detail(x) for p, x in made.items()} | {f"real {s}": _detail(x) for s, x in by.items()}
    out["alike"] = {p: _alike(x) for p, x in made.items()} | {f"real {s}": _alike(x) for s, x in by.items()}
    out["kid"], out["copies"] = _distances(kind_judge, made, by, trained)
    return out, made


def _of(films: Sequence[Mapping[str, Any]], source: str) -> Tensor:
    return torch.stack([f["image"] for f in films if f["source"] == source])


def _distances(
    judge: Judge, made: Mapping[str, Tensor], real: Mapping[str, Tensor], trained: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, float]]:
    """KID with its floor on the second judge's features, and the share of copies on thumbnails of 16 pixels."""

    def features(x: Tensor) -> Tensor:
        return torch.cat([judge.features(part) for part in x.split(64)])

    def thumbnails(x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 16).flatten(1)

    asked = {
        "mednist6": ["a chest x-ray"],
        "cxr_covid": list(PAIRS["view"][1]),
        "cxr_pneumonia28": list(PAIRS["finding, coarse"][1]),
    }
    scores: dict[str, Any] = {}
    copied: dict[str, float] = {}
    for source, prompts in asked.items():
        images = torch.cat([made[p] for p in prompts])
        scores[source] = vars(floored(kid, features(images), features(real[source])))
        known = _of(trained, source)
        copied[source] = copies(thumbnails(images), thumbnails(known), thumbnails(real[source]))[0]
    return scores, copied


# ---------------------------------------------------------------------------------------------------------- pictures


def pictures(rows: Mapping[str, Tensor], path: Path | str, columns: int = 10, side: int = 128) -> Path:
    """A sheet: one row of images (N, 1, H, W) in [-1, 1] under each title."""
    margin, width = 18, columns * side
    page = Image.new("L", (width, len(rows) * (side + margin)), 255)
    pen = ImageDraw.Draw(page)
    for r, (title, images) in enumerate(rows.items()):
        top = r * (side + margin)
        pen.text((4, top + 3), title, fill=0)
        for c, x in enumerate(images[:columns]):
            pixels = ((x.mean(0) + 1) * 127.5).round().clamp(0, 255).numpy().astype(np.uint8)
            page.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC), (c * side, top + margin))
    page.save(path)
    return Path(path)


def written(figures: Mapping[str, Any], folder: Path | str) -> Path:
    """``figures.json`` and, to be read, ``figures.md`` in a folder."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    text = _study(figures) if "accuracy" in figures else _evaluated(figures)
    (place / "figures.md").write_text(text, encoding="utf-8")
    return place / "figures.json"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(x) for x in line)} |\n" for line in lines) + "\n"


def _percent(x: float) -> str:
    return f"{100 * x:.1f} %"


def _agreed(found: Mapping[str, Any]) -> list[str]:
    low, high = found["interval"]
    seeds = ", ".join(_percent(x) for x in found["by_seed"].values())
    between = " to ".join(_percent(x) for x in found["shuffled_interval"])
    return [
        f"{_percent(found['agreement'])} ({_percent(low)} to {_percent(high)})",
        seeds,
        f"{_percent(found['shuffled'])} ({between})",
        str(found["n"]),
    ]


def _trips(found: Mapping[str, Mapping[str, float]]) -> str:
    rows = [[k, f"{v['rmse']:.4f}", f"{v['psnr']:.1f} dB", f"{v['ssim']:.3f}"] for k, v in found.items()]
    return _table(["round trip of real films", "RMSE", "PSNR", "SSIM"], rows)


def _evaluated(found: Mapping[str, Any]) -> str:
    real = found["judges_on_real"]
    rows = [
        ["normal or pneumonia, test", _percent(real["finding_on_test"]["balanced_accuracy"]),
         f"AUROC {real['finding_on_test']['auroc']:.3f}", real["finding_on_test"]["n"]],
        ["child, adult, pa or ap supine, validation and test", _percent(real["kind"]["balanced_accuracy"]),
         ", ".join(f"{k} {_percent(v)}" for k, v in real["kind"]["each"].items()), real["kind"]["n"]],
        ["pa or ap supine, validation and test", _percent(real["view"]["accuracy"]), "", real["view"]["n"]],
    ]  # fmt: skip
    head = ["prompts", "judge agrees (95 % interval)", "by seed", "prompts shuffled", "films"]
    shares = [
        [s, f"{k['score']:.4f} ± {k['spread']:.4f}", f"{k['floor']:.4f} ± {k['floor_spread']:.4f}", k["n"],
         _percent(found["copies"][s])]
        for s, k in found["kid"].items()
    ]  # fmt: skip
    alike = [[k, f"{found['detail'][k]:.3f}", f"{found['alike'][k]:.3f}"] for k in found["alike"]]
    return (
        _table(["judge, on real films not trained on", "balanced accuracy", "", "films"], rows)
        + _table(head, [[k, *_agreed(v)] for k, v in found["agreement"].items()])
        + _trips(found["round_trip"])
        + _table(["against", "KID", "real against real", "n", "nearer to training than 99 % of unseen real"], shares)
        + _table(["films", "detail beyond 28 pixels", "mean SSIM of pairs"], alike)
    )


def _study(found: Mapping[str, Any]) -> str:
    text = found["text_encoder"]
    words = [[k, v["new_rows"], v["changed_weights"]] for k, v in found["textual_inversion"].items()]
    head = ["variant", "judge agrees (95 % interval)", "by seed", "prompts shuffled", "films"]
    return (
        _trips({"autoencoder as it is": found["autoencoder"]})
        + _table(["text encoder", "silhouette of the two findings"], [[k, f"{v:.3f}"] for k, v in text.items()])
        + _table(["textual inversion of", "rows added", "weights changed"], words)
        + _table(head, [[k, *_agreed(v)] for k, v in found["accuracy"].items()])
    )
