"""Peak memory and time of a step of fine-tuning: every weight, an adapter, and with per-sample gradients.

    python tests/benchmarks/finetuning.py [BACKBONE] [--batch 16] [--steps 5]

Each mode runs in a process of its own, on noise in place of images. Memory is the process's peak less what it had once
the backbone was loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time


def peak() -> float:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(backbone: str, mode: str, batch: int, steps: int) -> dict:
    import torch

    from monai_diffaug.backbones import hub
    from monai_diffaug.finetune.cases import Cases
    from monai_diffaug.finetune.measuring import batches_of
    from monai_diffaug.finetune.privacy import Budget, PrivateStage
    from monai_diffaug.finetune.settings import Ask
    from monai_diffaug.finetune.stage import FinetuneStage, told_of
    from monai_diffaug.finetune.stopping import Rules, Watch
    from monai_diffaug.finetune.trainee import trainee
    from monai_diffaug.primitives.runs import Draws

    torch.set_num_threads(1)
    model = hub.load(backbone)
    latents = torch.randn(batch, model.contract.latent_channels, *model.contract.latent_size)
    names = tuple(f"p{i}" for i in range(batch))
    cases = Cases(latents, {}, names, ("train",) * batch, torch.zeros(batch, dtype=torch.bool))
    labels = model.contract.labels
    if labels and "label" in model.conditioner.accepts:
        cases.told["label"] = [labels[0]] * batch  # type: ignore[index]
    kind, _, rank = mode.partition(" ")
    taught = trainee(model, kind, rank=int(rank or 8))
    settings = Ask(mode=kind, batch=batch).training(model.contract)
    shared = {"told": told_of(taught.backbone, cases, drop=True), "held_out": [], "watch": Watch(Rules())}
    if kind == "private":
        terms = Budget(1.0, 1.0, 1.0, steps, 1e-3, 1.0)
        rows = batches_of(cases, latents, 1)
        more = {"cases": rows, "patients": names, "terms": terms, "secret": 1, "views": 1, "at_once": batch}
        stage = PrivateStage(taught, settings, **shared, **more)
    else:
        stage = FinetuneStage(taught, settings, **shared)
    rows = batches_of(cases, latents, batch)[0]
    before = peak()
    stage.step(rows, 0, Draws.of(0, 0))
    begin = time.process_time()
    for i in range(1, steps):
        stage.step(rows, i, Draws.of(0, i))
    seconds = (time.process_time() - begin) / max(steps - 1, 1)
    trained = sum(p.numel() for p in taught.parameters)
    return {
        "trained": trained,
        "before_mb": round(before),
        "peak_mb": round(peak() - before),
        "cpu_s": round(seconds, 2),
    }


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("backbone", nargs="?", default="brain_mri")
    reader.add_argument("--batch", type=int, default=16)
    reader.add_argument("--steps", type=int, default=5)
    reader.add_argument("--mode")
    asked = reader.parse_args()
    if asked.mode:
        print(json.dumps(one(asked.backbone, asked.mode, asked.batch, asked.steps)))
        return
    print(
        "| mode | numbers trained | peak beyond the loaded backbone, MB | CPU seconds a step |",
        "| --- | --- | --- | --- |",
        sep="\n",
    )
    for mode in ("full", "lora 8", "private 8", "private 0"):
        words = [sys.executable, __file__, asked.backbone, "--batch", str(asked.batch), "--steps", str(asked.steps)]
        done = subprocess.run([*words, "--mode", mode], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(f"| {mode} | {row['trained']:,} | {row['peak_mb']} | {row['cpu_s']} |", flush=True)


if __name__ == "__main__":
    main()
