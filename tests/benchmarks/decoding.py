"""Memory and time of decoding 128^3 voxels: in one piece, in slabs (exact) and in tiles, each in a process of its own.

    python -m tests.benchmarks.decoding [--side 128]

The decoder is that of MONAI's brain latent diffusion model (channels 64-128-128-128, two residual blocks a level,
factor 8, latent 3 x 16^3) with random weights. Memory is the high-water mark of resident memory during decoding less
what was resident before; the allocator is left as it is. Budgets: a quarter of the plain decoder's for slabs, an eighth
for tiles.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from monai.networks.nets import AutoencoderKL

from monai_diffaug.backbones.budget import Way, ways, within

MIB = 2**20


def decoder(seed: int = 0) -> AutoencoderKL:
    """The autoencoder with random weights, norms included."""
    torch.manual_seed(seed)
    net = AutoencoderKL(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(64, 128, 128, 128),
        num_res_blocks=2,
        latent_channels=3,
        norm_num_groups=32,
        attention_levels=(False,) * 4,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    ).eval()
    for p in net.parameters():
        p.requires_grad_(False)
        if p.ndim == 1:
            p.add_(0.2 * torch.randn_like(p))
    return net


def latent(side: int) -> torch.Tensor:
    """Smooth, as latents are, with a dark border."""
    torch.manual_seed(1)
    n = side // 8
    z = torch.nn.functional.avg_pool3d(torch.randn(1, 3, n + 2, n + 2, n + 2), 3, 1) * 4
    ball = torch.linspace(-1, 1, n)
    inside = (ball[:, None, None] ** 2 + ball[:, None] ** 2 + ball**2 < 0.8).float()
    return z * inside


def resident(kind: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def measure(name: str, side: int, budget: int, out: Path) -> None:
    """Decode in this process, and write what it took and gave."""
    net, z = decoder(), latent(side)
    way: Way = next(ways(net, z.shape)) if name == "plain" else within(net, z.shape, budget, exact=name == "exact")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    before, begin = resident("VmRSS"), time.perf_counter()
    with torch.no_grad():
        image = net.decode(z) if name == "plain" else way.decode(net, z)
    seconds = time.perf_counter() - begin
    taken = resident("VmHWM") - before
    torch.save(image, out)
    print(
        json.dumps(
            {
                "way": str(way),
                "peak_mib": round(taken / MIB),
                "estimated_mib": round(way.peak / MIB),
                "seconds": round(seconds, 1),
                "cpu_seconds": round(time.process_time(), 1),
            }
        )
    )


def main() -> None:
    """All three, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--one", nargs=3, metavar=("NAME", "BUDGET", "OUT"))
    given = parser.parse_args()
    if given.one:
        measure(given.one[0], given.side, int(given.one[1]), Path(given.one[2]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows, plain = {}, None
        for name, part in (("plain", 1), ("exact", 4), ("tiles", 8)):
            out = Path(scratch) / f"{name}.pt"
            budget = 0 if plain is None else plain * MIB // part
            command = [sys.executable, "-m", "tests.benchmarks.decoding", "--side", str(given.side)]
            done = subprocess.run(
                [*command, "--one", name, str(budget), str(out)], capture_output=True, text=True, check=True
            )
            rows[name] = json.loads(done.stdout.splitlines()[-1])
            plain = plain or rows[name]["peak_mib"]
            if name != "plain":
                whole, other = torch.load(Path(scratch) / "plain.pt"), torch.load(out)
                span = float(whole.max() - whole.min())
                rows[name]["part_of_plain"] = round(rows[name]["peak_mib"] / plain, 3)
                rows[name]["worst_error"] = float(f"{float((whole - other).abs().max()) / span:.2e}")
                rows[name]["rms_error"] = float(f"{float((whole - other).pow(2).mean().sqrt()) / span:.2e}")
            print(json.dumps({name: rows[name]}), flush=True)


if __name__ == "__main__":
    main()
