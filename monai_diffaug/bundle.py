"""Training as MONAI bundles do it: one Ignite trainer for every stage, parts that a config can name.

A bundle's ``train.json`` defines networks, data and stages in MONAI's terms; :class:`StageTrainer` walks a stage over a
MONAI data set, goes on after a kill, and takes the same steps on one device or on several (``torchrun``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import Trainer
from rich.progress import track
from torch import Tensor, nn

from .backbones.hub import save as write_checkpoint
from .backbones.monai_unet import IdentityAutoencoder, MonaiAutoencoder, MonaiUNet
from .primitives import plans
from .primitives.guidance import classifier_free
from .primitives.runs import Draws, Resumable, described, progress
from .primitives.sampler import sample
from .primitives.stages import Stage, plain
from .types import Autoencoder, Backbone, DiffAugError

__all__ = [
    "Sampler",
    "StageTrainer",
    "StepBatches",
    "autoencoder",
    "batches",
    "device",
    "encoded",
    "join_processes",
    "leave_processes",
    "network",
    "save",
]


# --------------------------------------------------------------------------------------------- parts that configs name


def _definition(make: partial[nn.Module]) -> dict[str, Any]:
    """What rebuilds a network, of a config item with ``"_mode_": "callable"``."""
    if not isinstance(make, partial):
        raise DiffAugError('give the network\'s definition with "_mode_": "callable", so that it can be written down')
    target: Any = make.func
    return {"_target_": f"{target.__module__}.{target.__qualname__}", **make.keywords}


def network(make: partial[nn.Module], device: str | torch.device = "cpu", seed: int = 0) -> MonaiUNet:
    """A denoising network, from a config item with ``"_mode_": "callable"``; ``seed`` draws its weights."""
    torch.manual_seed(seed)
    module = make()
    built = MonaiUNet(module, _definition(make))
    if built.spatial_dims == 2:
        module = module.to(memory_format=torch.channels_last)
    module.to(device)
    return built


def autoencoder(
    make: partial[nn.Module] | None = None, device: str | torch.device = "cpu", scale: float = 1.0, seed: int = 0
) -> MonaiAutoencoder | IdentityAutoencoder:
    """An autoencoder, likewise; without a definition that of a pixel model."""
    if make is None:
        return IdentityAutoencoder()
    torch.manual_seed(seed)
    return MonaiAutoencoder(make().to(device), scale, _definition(make))


class Sampler(nn.Module):
    """A backbone as one network, noise in and image out, for MONAI's ``verify_net_in_out`` and ``ckpt_export``.

    MONAI 1.6 cannot script its diffusion networks; traced, the sampler's few steps become one TorchScript file that
    makes images without this package.

    Args:
        backbone: whose images.
        steps: network calls.
        scale: guidance weight; 1 for none.
        source_channels: how many of the last input channels are the image that the backbone is told, for one that is.
        what: what to tell the backbone (``label``, ``prompt``, ...).
    """

    def __init__(
        self, backbone: Backbone, steps: int = 8, scale: float = 1.0, *, source_channels: int = 0, **what: Any
    ):
        super().__init__()
        self.backbone, self.steps, self.scale, self.what = backbone, steps, scale, what
        self.source_channels = source_channels
        self.parts = nn.ModuleDict(backbone.modules())

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the denoising network's weights, which is what a bundle's ``models/network.pt`` holds."""
        return self.backbone.network.module.load_state_dict(state_dict, strict, assign)

    def forward(self, noise: Tensor) -> Tensor:
        """Images (B, C, *S) in the contract's value range, from standard normal noise (B, c, *S / factor)."""
        plan = plans.make(self.backbone.schedule, self.steps)
        what = dict(self.what)
        if self.source_channels:
            noise, what["image"] = noise[:, : -self.source_channels], noise[:, -self.source_channels :]
        told = self.backbone.condition(noise.shape[0], **what)
        denoise = classifier_free(self.backbone, told, self.scale, batch=noise.shape[0])
        return self.backbone.decode(sample(denoise, plan[0].level.sigma * noise, plan))


def encoded(
    dataset: Sequence[Mapping[str, Any]],
    autoencoder: Autoencoder,
    views: Callable[[Tensor], Sequence[Tensor]] | None = None,
    key: str = "image",
    batch: int = 16,
) -> Dataset:
    """A data set in memory whose images are latents, so that the autoencoder runs once and not in every step.

    Args:
        dataset: items with an image (C, *S).
        autoencoder: as trained.
        views: of an image, such as ``lambda x: [x, x.flip(-1)]``; each becomes an item. The other fields are shared, so
            give no views that a mask would have to follow.
        key: of the image.
        batch: images at once.
    """
    items = [{**item, key: view} for item in dataset for view in (views or _itself)(plain(item[key]))]
    where = next(autoencoder.module.parameters(), torch.empty(0)).device
    with torch.no_grad():
        for start in track(range(0, len(items), batch), description="encoding", transient=True):
            part = items[start : start + batch]
            latents = autoencoder.encode(torch.stack([i[key] for i in part]).float().to(where)).cpu()
            for item, latent in zip(part, latents, strict=True):
                item[key] = latent.clone()
    return Dataset(items)


def save(backbone: Backbone, bundle_root: str | Path) -> Path:
    """Write the checkpoint into the bundle's ``models``, where ``hub.load(bundle_root)`` and ``ckpt_export`` find it.

    In a run of several processes the first one writes.
    """
    folder = Path(bundle_root) / "models"
    if _share()[0] == 0:
        write_checkpoint(backbone, folder, ending=".pt")
    return folder


def _itself(image: Tensor) -> Sequence[Tensor]:
    return [image]


def batches(dataset: Sequence[Mapping[str, Any]], batch: int = 32, most: int = 256) -> list[Mapping[str, Any]]:
    """A data set's items as a few fixed batches, spread evenly over it: what a stage's ``held_out`` takes."""
    which = list(range(0, len(dataset), max(1, -(-len(dataset) // most))))
    chosen = Dataset([dataset[i] for i in which])
    return list(DataLoader(chosen, batch_size=batch, num_workers=0)) if which else []


# ------------------------------------------------------------------------------------------------- several processes


def join_processes() -> bool:
    """Meet the other processes of ``torchrun``, if there are any; to be called in a config's ``initialize``."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return True


def leave_processes() -> bool:
    """The opposite, for ``finalize``."""
    if dist.is_initialized():
        dist.destroy_process_group()
    return True


def device() -> torch.device:
    """This process's own accelerator, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _share() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


class StepBatches:
    """Positions in a data set for one step after the other, from ``first`` on, without end.

    A step's batch depends on its number and the seed alone: every image once before any comes again, dealt out to the
    processes in turn.
    """

    def __init__(self, n: int, batch: int, seed: int, first: int, rank: int, world: int):
        self.n, self.batch, self.seed, self.step, self.rank, self.world = n, batch, seed, first, rank, world

    def _at(self, place: int) -> int:
        rounds, position = divmod(place, self.n)
        if rounds != getattr(self, "_round", None):
            self._round = rounds
            generator = torch.Generator().manual_seed(self.seed * 7_368_787 + rounds)
            self._order = torch.randperm(self.n, generator=generator).tolist()
        return int(self._order[position])

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            whole = [self._at(self.step * self.batch + i) for i in range(self.batch)]
            self.step += 1
            yield whole[self.rank :: self.world]


class StageTrainer(Trainer):
    """Walks a stage over a data set (``monai.engines.Trainer``, so that MONAI's and Ignite's handlers attach).

    An Ignite epoch is ``settings.log_every`` steps. After each, the losses' means are written to ``<stage>.jsonl`` and
    put in ``state.metrics``; the checkpoint ``<stage>.ckpt`` is written whole or not at all every
    ``settings.checkpoint_seconds``, and the same folder goes on from it.

    Args:
        stage: what is trained.
        dataset: items with ``image`` (C, *S) and what the stage asks for besides.
        folder: where checkpoint and log go.
        device: of the trainer's state; the stage's own networks say where they run.
        workers: processes that read the data.
        handlers: MONAI's or Ignite's.
        check_every: epochs between two calls of the stage's ``check``.
        stop: asked with every row of the log; what it returns, if anything, is why training ends early.

    Raises:
        DiffAugError: the data set is empty, or the batch cannot be shared evenly by the processes.
    """

    def __init__(
        self,
        stage: Stage,
        dataset: Sequence[Any],
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        workers: int = 0,
        handlers: Sequence[Any] | None = None,
        check_every: int = 10,
        stop: Callable[[int, Mapping[str, float]], str | None] | None = None,
    ):
        settings, (self.rank, self.world) = stage.settings, _share()
        if len(dataset) == 0:
            raise DiffAugError(f"there is nothing to train the {stage.name} on: the data set is empty")
        if settings.batch % self.world:
            raise DiffAugError(
                f"a batch of {settings.batch} cannot be shared by {self.world} processes: give a multiple of them"
            )
        self.stage, self.check_every, self.stop = stage, check_every, stop
        self.stopped = ""
        self.run_of_it = Resumable(Path(folder), stage.name, settings, stage.state)
        order = StepBatches(len(dataset), settings.batch, settings.seed, self.run_of_it.done, self.rank, self.world)
        epoch = settings.log_every
        super().__init__(
            device=torch.device(device),
            max_epochs=-(-settings.steps // epoch),
            data_loader=DataLoader(dataset, batch_sampler=order, num_workers=workers),
            epoch_length=min(epoch, settings.steps),
            iteration_update=self._update,
            handlers=handlers,
            decollate=False,
        )
        self.state.iteration = self.run_of_it.done
        self.state.epoch = self.run_of_it.done // epoch
        self._sums = dict[str, float]()
        self._began = self._saved = time.monotonic()
        self.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)

    def _update(self, _: Any, batch: Mapping[str, Any]) -> list[Mapping[str, float]]:
        step = self.state.iteration - 1
        draws = Draws.of(self.stage.settings.seed, step, self.rank, self.world)
        return [self.stage.step(batch, step, draws)]  # in a list, as MONAI's handlers expect it

    def _after_step(self) -> None:
        settings, done = self.stage.settings, self.state.iteration
        for key, value in self.state.output[0].items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        ended = done >= settings.steps
        self._shown.update(self._bar, completed=done)
        if done % settings.log_every == 0 or ended:
            row = self._row(done, ended)
            why = self.stop(done, row) if self.stop is not None else None
            if why:
                self.stopped, ended = why, True
        if ended or (done % settings.log_every == 0 and time.monotonic() - self._saved > settings.checkpoint_seconds):
            if self.rank == 0:
                self.run_of_it.save(done)
            self._saved = time.monotonic()
        if ended and (self.stopped or done % settings.log_every):
            self.terminate()  # else the epoch ends by itself, and its handlers are called

    def _row(self, done: int, ended: bool) -> dict[str, float]:
        """Means over the epoch and over the processes, and what the stage checks."""
        every = self.stage.settings.log_every
        keys = sorted(self._sums)
        means = torch.tensor([self._sums[k] for k in keys], dtype=torch.float64) / ((done - 1) % every + 1)
        self._sums = {}
        if self.world > 1:
            dist.all_reduce(means)
            means /= self.world
        row = dict(zip(keys, means.tolist(), strict=True))
        if ended or (done // every) % self.check_every == 0:
            row |= self.stage.check(done)
        self.state.metrics = dict(row)
        if self.rank == 0:
            self.run_of_it.record(done, {"seconds": round(time.monotonic() - self._began, 1), **row})
        self._shown.update(self._bar, description=described(self.stage.name, row))
        return row

    def run(self) -> None:
        """Take the steps that are left, then let the stage finish."""
        with progress() as self._shown:
            total = self.stage.settings.steps
            self._bar = self._shown.add_task(self.stage.name, total=total, completed=self.state.iteration)
            if self.state.iteration < total:
                super().run()
        self.stage.finish()
