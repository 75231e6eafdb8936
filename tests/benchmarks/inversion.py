"""Image -> noise -> image: ours against MONAI's loop and diffusers' inverse scheduler, on one network.

    python -m tests.benchmarks.inversion [--images 16] [--steps 20 50]

Real images of the package's samples, which no backbone was trained on. RMSE is between latents; the time is that of
inversion alone.
"""

from __future__ import annotations

import argparse
import time

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from monai.networks.schedulers import DDIMScheduler as MonaiDDIM
from torch import Tensor

from monai_diffaug.backbones import hub
from monai_diffaug.io import datalist, images
from monai_diffaug.primitives import plans
from monai_diffaug.primitives.fitting import fit
from monai_diffaug.primitives.inversion import invert
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.types import Backbone, Condition


def real(name: str, most: int) -> tuple[Tensor, list[str]]:
    """Sample images fitted to a backbone's contract, and their classes."""
    contract = hub.load(name).contract
    items = [i for i in datalist.read(name) if str(i.kind) in contract.labels][:most]
    return torch.stack([fit(images.read(i.image, dims=2).image, contract).tensor for i in items]), [
        str(i.kind) for i in items
    ]


def _rmse(a: Tensor, b: Tensor) -> float:
    return float((a - b).double().pow(2).flatten(1).mean(1).sqrt().mean())


def ours(backbone: Backbone, z: Tensor, condition: Condition, steps: int) -> tuple[float, float, int]:
    """RMSE, seconds, network calls."""
    denoise = backbone.denoiser(condition)
    began = time.perf_counter()
    found = invert(denoise, z, plans.ddim(backbone.schedule, steps))
    seconds = time.perf_counter() - began
    return _rmse(sample(denoise, found.latent, found.plan), z), seconds, found.calls


def monai(backbone: Backbone, z: Tensor, condition: Condition, steps: int) -> tuple[float, float, int]:
    """Their `reversed_step` upwards and `step` downwards; the topmost time, at which it raises, is left out."""
    c = backbone.schedule.config
    scheduler = MonaiDDIM(
        num_train_timesteps=c["num_train_timesteps"],
        schedule="scaled_linear_beta",
        beta_start=c["beta_start"],
        beta_end=c["beta_end"],
        prediction_type=c["prediction_type"],
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    times = [int(t) for t in scheduler.timesteps]
    gap = c["num_train_timesteps"] // steps
    times = [t for t in times if t + gap < c["num_train_timesteps"]]

    def network(x: Tensor, t: int) -> Tensor:
        return backbone.output(x, float(t), condition)

    began, x = time.perf_counter(), z
    for t in reversed(times):
        x, _ = scheduler.reversed_step(network(x, t), t, x)
    seconds = time.perf_counter() - began
    for t in times:
        x, _ = scheduler.step(network(x, t), t, x)
    return _rmse(x, z), seconds, len(times)


def diffusers(backbone: Backbone, z: Tensor, condition: Condition, steps: int) -> tuple[float, float, int]:
    """`DDIMInverseScheduler`, then `DDIMScheduler` on the same spacing."""
    c = backbone.schedule.config
    common = {k: c[k] for k in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")}
    up = DDIMInverseScheduler(**common, clip_sample=False, timestep_spacing="leading")
    down = DDIMScheduler(**common, clip_sample=False, timestep_spacing="leading", set_alpha_to_one=False)
    up.set_timesteps(steps)
    down.set_timesteps(steps)
    began, x = time.perf_counter(), z
    for t in up.timesteps:
        x = up.step(backbone.output(x, float(t), condition), t, x).prev_sample
    seconds = time.perf_counter() - began
    for t in down.timesteps:
        x = down.step(backbone.output(x, float(t), condition), t, x).prev_sample
    return _rmse(x, z), seconds, steps


def compare(name: str, most: int, steps: int) -> dict[str, tuple[float, float, int]]:
    """All three on one backbone."""
    backbone = hub.load(name)
    pictures, kinds = real(name, most)
    with torch.no_grad():
        z = backbone.encode(pictures)
        condition = backbone.condition(len(z), label=kinds)
        return {f.__name__: f(backbone, z, condition, steps) for f in (ours, monai, diffusers)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    given = parser.parse_args()
    print("| backbone | steps | loop | RMSE | of theirs | calls | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in hub.shipped():
        for steps in given.steps:
            found = compare(name, given.images, steps)
            for loop, (rmse, seconds, calls) in found.items():
                ratio = "" if loop == "ours" else f"1/{rmse / found['ours'][0]:.0f}"
                print(f"| {name} | {steps} | {loop} | {rmse:.3g} | {ratio} | {calls} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
