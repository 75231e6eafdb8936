"""What this machine is and which of its fast paths are fast: versions from the metadata, speed from a short trial."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PACKAGES", "fast_paths", "processor", "versions"]

PACKAGES = (
    *("monai", "torch", "diffusers", "transformers", "peft", "monai-generative", "safetensors", "numpy"),
    *("nibabel", "pydicom", "openvino"),
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def versions() -> dict[str, str | None]:
    """Version of each package that matters; ``None`` where it is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def processor() -> dict[str, Any]:
    """Device, threads, memory, and the instruction sets that matter here."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    flags = next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else device,
        "cpu": name or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "instructions": [f for f in CPU_FLAGS if f in flags],
    }


class _Block(nn.Module):
    """Convolutions and one attention, as a U-Net's middle level has them."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.first, self.second = conv(width, width, 3, padding=1), conv(width, width, 3, padding=1)
        self.norm, self.qkv = nn.GroupNorm(8, width), nn.Linear(width, 3 * width)
        self.fused = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) to the same."""
        x = self.second(F.silu(self.norm(self.first(x))))
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (part.unflatten(2, (-1, 32)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=2))
        if self.fused:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = torch.softmax(q @ k.transpose(2, 3) / 32**0.5, dim=-1) @ v
        return x + out.transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape)


def fast_paths(dims: int = 2, budget: float = 2.0) -> dict[str, float]:
    """How many times faster than plain float32 each path runs one block here, and all of them together.

    Args:
        dims: 2 or 3.
        budget: seconds for all trials; they take turns, so that whatever else the machine does hits all of them, and
            the best time of each counts.

    Returns:
        ``fused attention``, ``channels_last``, ``bfloat16``, ``all but bfloat16``, ``all`` -> factor over plain float32
        (above 1 is faster).
    """
    shape = (2, 128, 32, 32) if dims == 2 else (1, 64, 10, 10, 10)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    x = torch.ones(shape, device=device)
    blocks = {layout: _Block(dims, shape[1]).to(device).eval() for layout in (torch.contiguous_format, last)}
    for layout, block in blocks.items():
        block.to(memory_format=layout)
    cases: Mapping[str, tuple[bool, torch.memory_format, bool]] = {
        "plain": (False, torch.contiguous_format, False),
        "fused attention": (True, torch.contiguous_format, False),
        "channels_last": (False, last, False),
        "bfloat16": (False, torch.contiguous_format, True),
        "all but bfloat16": (True, last, False),
        "all": (True, last, True),
    }

    def seconds(fused: bool, layout: torch.memory_format, half: bool) -> float:
        block, data = blocks[layout], x.to(memory_format=layout)
        block.fused = fused
        start = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16) if half else nullcontext():
            block(data)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads wait for each other, and beside other work that is all that would be measured
    try:
        best = {name: float("inf") for name in cases}
        until, rounds = time.perf_counter() + budget, 0
        while rounds < 4 or time.perf_counter() < until:  # the first round warms up
            times = {name: seconds(*case) for name, case in cases.items()}
            best = {name: min(best[name], t) for name, t in times.items()} if rounds else best
            rounds += 1
    finally:
        torch.set_num_threads(threads)
    return {name: round(best["plain"] / t, 2) for name, t in best.items() if name != "plain"}
