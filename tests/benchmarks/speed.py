"""Seconds per image at equal quality: ours against MONAI's inferer and diffusers' DPM-Solver++ loop, on one network.

    python -m tests.benchmarks.speed [--images 128] [--batch 16] [--quick] [--data DATA]

Text-conditioned `mednist`, one process. Quality is KID on the judge's features against real test images: those of the
full set with `--data`, else the few that come with the package, which say little.

Peers run as they come: `LatentDiffusionInferer` with attention as MONAI builds it, float32, DDIM and DDPM; diffusers'
scheduler with the two-branch loop of its Stable Diffusion pipeline, fused attention, float32, 50 steps, guidance at
every step. The table of gains adds ours one at a time to the same loop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler
from monai.inferers import LatentDiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from monai_diffaug.backbones import hub
from monai_diffaug.domains import mednist
from monai_diffaug.metrics.distribution import floored, kid
from monai_diffaug.primitives import guidance, plans
from monai_diffaug.primitives.sampler import sample
from monai_diffaug.types import Backbone, NoiseSource
from tests.benchmarks.inversion import real

SCALE = 2.0  # of guidance
INTERVAL = (0.15, 0.85)  # of network time, in which ours guides


@dataclass(frozen=True)
class Task:
    """What every loop is given: the backbone, prompts, noise, the batch."""

    backbone: Backbone
    prompts: list[str]
    batch: int

    def batches(self) -> Iterator[tuple[list[str], Tensor, int]]:
        """Prompts, standard normal latents and the first seed of each batch."""
        c = self.backbone.contract
        for a in range(0, len(self.prompts), self.batch):
            words = self.prompts[a : a + self.batch]
            noise = NoiseSource(range(a, a + len(words)))
            yield words, noise.normal(torch.empty(len(words), c.latent_channels, *c.latent_size)), a


Loop = Callable[[Task], Tensor]


def ours(
    steps: int = 10,
    *,
    interval: tuple[float, float] = INTERVAL,
    precision: torch.dtype = torch.bfloat16,
    scale: float = SCALE,
) -> Loop:
    """The package's own loop."""

    def run(task: Task) -> Tensor:
        backbone, out = task.backbone.with_precision(precision), []
        plan = plans.make(backbone.schedule, steps)
        for words, x, _ in task.batches():
            told = backbone.condition(len(words), prompt=words)
            denoise = guidance.classifier_free(backbone, told, scale, interval=interval)
            out.append(backbone.decode(sample(denoise, plan[0].level.sigma * x, plan)))
        return torch.cat(out)

    return run


def _plain_module(backbone: Backbone) -> torch.nn.Module:
    """The network as MONAI builds it: attention not fused, default memory format."""
    config = {k: v for k, v in backbone.network.config.items() if not k.startswith("_")}
    module = DiffusionModelUNet(**config)
    module.load_state_dict(backbone.network.module.state_dict())
    return module.eval()


def monai_inferer(steps: int, kind: str = "ddim", cfg: float | None = None) -> Loop:
    """`LatentDiffusionInferer.sample`."""

    def run(task: Task) -> Tensor:
        c = task.backbone.schedule.config
        common = {
            "num_train_timesteps": c["num_train_timesteps"],
            "schedule": "scaled_linear_beta",
            "beta_start": c["beta_start"],
            "beta_end": c["beta_end"],
            "prediction_type": c["prediction_type"],
            "clip_sample": False,
        }
        scheduler = (DDIMScheduler if kind == "ddim" else DDPMScheduler)(**common)
        scheduler.set_timesteps(steps)
        inferer = LatentDiffusionInferer(scheduler, scale_factor=task.backbone.contract.latent_scale)
        module, out = _plain_module(task.backbone), []
        for words, x, seed in task.batches():
            torch.manual_seed(seed)
            told = task.backbone.condition(len(words), prompt=words)
            out.append(
                inferer.sample(
                    input_noise=x,
                    autoencoder_model=task.backbone.autoencoder.module,
                    diffusion_model=module,
                    scheduler=scheduler,
                    conditioning=told.tokens,
                    verbose=False,
                    cfg=cfg,
                )
            )
        return torch.cat(out)

    return run


def diffusers_loop(
    steps: int = 50, *, precision: torch.dtype = torch.float32, two_calls: bool = False, log_snr: bool = False
) -> Loop:
    """DPM-Solver++ as a Stable Diffusion pipeline walks it, with single gains of ours to be added."""

    def run(task: Task) -> Tensor:
        backbone, out = task.backbone.with_precision(precision), []
        c = backbone.schedule.config
        keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
        common = {k: c[k] for k in keys}
        scheduler = DPMSolverMultistepScheduler(**common, use_lu_lambdas=log_snr)
        for words, x, _ in task.batches():
            scheduler.set_timesteps(steps)
            told, null = backbone.condition(len(words), prompt=words), backbone.condition(len(words))
            both = type(told).cat([null, told])
            x = x * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                if two_calls:
                    a, b = backbone.output(x, float(t), null), backbone.output(x, float(t), told)
                else:
                    a, b = backbone.output(torch.cat([x, x]), float(t), both).chunk(2)
                x = scheduler.step(a + SCALE * (b - a), t, x).prev_sample
            out.append(backbone.decode(x))
        return torch.cat(out)

    return run


@contextmanager
def channels_first(backbone: Backbone) -> Iterator[None]:
    """The network in the default memory format, for the time of the block."""
    module = backbone.network.module
    module.to(memory_format=torch.contiguous_format)
    try:
        yield
    finally:
        module.to(memory_format=torch.channels_last)


def timed(loop: Loop, task: Task) -> tuple[float, Tensor]:
    """Seconds per image, and the images."""
    with torch.no_grad():
        loop(replace(task, prompts=task.prompts[:2]))  # warm
        began = time.perf_counter()
        images = loop(task)
    return (time.perf_counter() - began) / len(task.prompts), images.clamp(-1, 1)


def overhead(task: Task, steps: int = 10, repeats: int = 5) -> float:
    """How much longer a walk takes than its network calls alone, as a fraction (least of several repeats)."""
    backbone = task.backbone.with_precision(torch.bfloat16)
    plan = plans.make(backbone.schedule, steps)
    words, x, _ = next(iter(task.batches()))
    told, null = backbone.condition(len(words), prompt=words), backbone.condition(len(words))
    both, twice = type(told).cat([null, told]), torch.cat([x, x])
    denoise = guidance.classifier_free(backbone, told, SCALE)

    def bare() -> None:
        for row in plan:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                backbone.network(twice, torch.full((len(twice),), row.level.t), both)

    def seconds(f: Callable[[], object]) -> float:
        began = time.perf_counter()
        f()
        return time.perf_counter() - began

    with torch.no_grad():
        pairs = [(seconds(lambda: sample(denoise, x, plan)), seconds(bare)) for _ in range(repeats)]
    return min(a for a, _ in pairs) / min(b for _, b in pairs) - 1.0


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--data", type=Path, help="Folder that holds mednist6.")
    parser.add_argument("--quick", action="store_true", help="Leave out DDPM with 1,000 steps.")
    given = parser.parse_args()
    backbone = hub.load("mednist")
    pictures, kinds = real("mednist", 10_000)
    if given.data is not None:
        films = mednist.read(given.data).known().part("test")
        order = torch.randperm(len(films), generator=torch.Generator().manual_seed(0)).tolist()
        pictures, kinds = films.images[order], [films.modalities[i] for i in order]
    prompts = [f"a {kinds[i % len(kinds)]}" for i in range(given.images)]
    task = Task(backbone, prompts, given.batch)
    features = backbone.judge.features(pictures)
    loops = {f"ours, {n} steps": ours(n) for n in (6, 8, 10, 15, 20)}
    loops["diffusers, 50 steps (its default)"] = diffusers_loop(50)
    loops |= {f"diffusers, {n} steps": diffusers_loop(n) for n in (25, 15)}
    loops |= {f"MONAI DDIM, {n} steps": monai_inferer(n) for n in (10, 20, 50, 100, 250)}
    loops["MONAI DDIM, 50 steps, cfg"] = monai_inferer(50, cfg=SCALE)
    loops["MONAI DDPM, 250 steps"] = monai_inferer(250, "ddpm")
    if not given.quick:
        loops["MONAI DDPM, 1000 steps"] = monai_inferer(1000, "ddpm")
    print("| loop | seconds per image | KID |\n| --- | --- | --- |")
    for name, loop in loops.items():
        seconds, images = timed(loop, task)
        print(f"| {name} | {seconds:.4f} | {kid(backbone.judge.features(images), features):.4f} |", flush=True)
    floor = floored(kid, features, features, n=given.images)
    print(f"\nreal against real: {floor.floor:.4f} +- {floor.floor_spread:.4f} (n = {floor.n})")
    print("\n| gain alone, at 20 steps | seconds per image | times faster |\n| --- | --- | --- |")
    base: float | None = None
    gains: dict[str, Loop] = {
        "two calls, float32, channels first": diffusers_loop(20, two_calls=True),
        "guidance in one call": diffusers_loop(20),
        "bf16": diffusers_loop(20, two_calls=True, precision=torch.bfloat16),
        "guidance in the interval": ours(20, precision=torch.float32),
        "10 steps": diffusers_loop(10, two_calls=True),
    }
    with channels_first(backbone):
        for name, loop in gains.items():
            seconds, _ = timed(loop, task)
            base = base or seconds
            print(f"| {name} | {seconds:.4f} | {base / seconds:.2f} |", flush=True)
    seconds, _ = timed(diffusers_loop(20, two_calls=True), task)
    print(f"| channels last | {seconds:.4f} | {base / seconds:.2f} |")
    print(f"\noverhead of the loop over its network calls: {overhead(task):.2%}")


if __name__ == "__main__":
    main()
