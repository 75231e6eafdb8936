"""Fine-tuning that tells little of any one patient: DP-SGD (Abadi et al. 2016, arXiv:1607.00133), patient by patient.

What is protected is a patient, not an image: every step draws patients, each by a coin of its own, takes the mean
gradient over a few images and noise levels of each (Dockhorn et al. 2023, arXiv:2210.09929, section 3.2), cuts it to a
length and adds noise of that length to the sum. Adding or removing all of a patient's images changes the sum by no more
than the length, so that no group privacy is needed, however many images a patient has.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..io.atomic import write_bytes
from ..primitives.runs import Draws
from ..primitives.stages import Batch
from ..types import DiffAugError
from .stage import FinetuneStage

__all__ = ["Budget", "PrivateStage", "budget", "spent"]


@dataclass(frozen=True)
class Budget:
    """Noise, and what it buys: epsilon at delta after so many steps, by the accountant.

    ``noise`` is the ratio of the noise's deviation to the length ``clip`` that a patient's gradient is cut to;
    ``rate`` the chance of a patient to be in a step.
    """

    noise: float
    clip: float
    rate: float
    steps: int
    delta: float
    epsilon: float


def spent(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon after ``steps`` steps, by Renyi accounting of the subsampled Gaussian (Mironov et al. 2019)."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    return float(accountant.get_epsilon(delta))


def budget(
    patients: int,
    steps: int,
    batch: int,
    *,
    epsilon: float | None = None,
    noise: float | None = None,
    delta: float | None = None,
    clip: float = 1.0,
) -> Budget:
    """The noise that a target wants, or the epsilon that a noise gives.

    Args:
        patients: trained on.
        steps: of training.
        batch: patients in a step, on average.
        epsilon: target; 8 unless it or ``noise`` is given.
        noise: see :class:`Budget`.
        delta: chance that the bound does not hold; a tenth of one over the patients unless given.
        clip: length that gradients are cut to.

    Raises:
        DiffAugError: both or neither sense of a setting, a target that no noise reaches, or opacus is not installed.
    """
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError:
        raise DiffAugError("private fine-tuning needs opacus: pip install 'monai-diffaug[opacus]'") from None
    if epsilon is not None and noise is not None:
        raise DiffAugError("epsilon follows from the noise: give one of --epsilon and --noise")
    delta = 0.1 / patients if delta is None else delta
    if not 0 < delta < 1 or (epsilon is not None and epsilon <= 0) or (noise is not None and noise <= 0):
        raise DiffAugError("give an epsilon and a noise above 0 and a delta between 0 and 1")
    rate = min(1.0, batch / patients)
    if noise is None:
        target = 8.0 if epsilon is None else epsilon
        try:
            found: float = get_noise_multiplier(
                target_epsilon=target, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
            )
        except ValueError:
            raise DiffAugError(f"no noise gives epsilon {target:g} here: give a larger one, or fewer steps") from None
        noise = float(found)
    return Budget(noise, clip, rate, steps, delta, spent(noise, rate, steps, delta))


def secret_of(folder: Path) -> int:
    """The run's secret seed, made once. Whoever knows it can take the noise off: it stays out of bundles and logs."""
    path = folder / "secret"
    if not path.is_file():
        write_bytes(path, str(secrets.randbits(62)).encode())
        path.chmod(0o600)
    return int(path.read_text())


class PatientDraws(Draws):
    """The random numbers of several patients, each from a stream of its own.

    What is drawn for one must not depend on who else is in the step: else taking a patient out would change what the
    others add, and the bound on one patient's influence would not hold.
    """

    def __init__(self, streams: Sequence[Draws], views: int):
        super().__init__(torch.Generator())
        self.streams, self.views = streams, views

    def uniform(self, batch: int) -> Tensor:
        """(batch,) in [0, 1), ``views`` rows a patient."""
        return torch.cat([s.uniform(self.views) for s in self.streams])

    def spread(self, batch: int) -> Tensor:
        """(batch,) in [0, 1), a patient's rows from equal parts of it."""
        return torch.cat([s.spread(self.views) for s in self.streams])

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape of ``like`` (B, ...)."""
        return torch.cat([s.normal(x) for s, x in zip(self.streams, like.split(self.views), strict=True)])


class PrivateStage(FinetuneStage):
    """DP-SGD on the network. It draws its own patients, since how they are drawn is part of what is guaranteed.

    Nothing is decided on by looking at the data: no check ends the run, and the last averaged weights are the result.

    Args:
        cases: batches of one image each, the training images' latents and what is told of them.
        patients: whose they are.
        terms: noise and lengths.
        secret: seed of every draw.
        views: images and noise levels of a patient in a step.
        at_once: rows of per-sample gradients in memory.
        rest: see :class:`FinetuneStage`.
    """

    def __init__(
        self,
        *args: Any,
        cases: Sequence[Batch],
        patients: Sequence[str],
        terms: Budget,
        secret: int,
        views: int = 4,
        at_once: int = 32,
        **rest: Any,
    ):
        super().__init__(*args, **rest)
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer

        self.cases, self.terms, self.secret, self.views = cases, terms, secret, views
        self.names = sorted(set(patients))
        self.of = {n: [i for i, p in enumerate(patients) if p == n] for n in self.names}
        self.at_once = max(1, at_once // views)
        self.hooked = GradSampleModule(self.network.module, strict=False)
        self.noise = torch.Generator()
        self.private = DPOptimizer(
            self.optimizer,
            noise_multiplier=terms.noise,
            max_grad_norm=terms.clip,
            expected_batch_size=max(1, round(terms.rate * len(self.names))),
            generator=self.noise,
        )

    def step(self, batch: Batch, step: int, draws: Draws) -> dict[str, float]:
        """One step on patients drawn here; what it was given is not looked at."""
        self.parts.train()
        self.noise.manual_seed(self._seed(step, "noise"))
        streams = {n: Draws(torch.Generator().manual_seed(self._seed(step, f"patient {n}"))) for n in self.names}
        chosen = [n for n in self.names if float(streams[n].uniform(1)) < self.terms.rate]
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(step)
        self.private.zero_grad(set_to_none=True)
        for p in self.parameters:
            p.summed_grad = None
        losses = []
        for first in range(0, max(len(chosen), 1), self.at_once):
            some = chosen[first : first + self.at_once]
            losses.append(self.gradients({n: streams[n] for n in some}))
            self.private.clip_and_accumulate()
        self.private.add_noise()
        self.private.scale_grad()
        self.optimizer.step()
        self.average.update_parameters(self.parts)
        return {"loss": sum(losses) / max(len(losses), 1), "patients": float(len(chosen))}

    def _seed(self, step: int, what: str) -> int:
        return int(hashlib.sha256(f"{self.secret} {step} {what}".encode()).hexdigest()[:15], 16)

    def gradients(self, streams: Mapping[str, Draws]) -> float:
        """Each patient's mean gradient goes into the parameters' ``grad_sample`` (patients, ...); returns the loss.

        Args:
            streams: the patients' random numbers, by name.
        """
        for p in self.parameters:
            p.grad_sample = None if streams else torch.zeros(0, *p.shape)
        if not streams:
            return 0.0
        rows = []
        for name, draws in streams.items():
            picks = (draws.uniform(self.views) * len(self.of[name])).long().tolist()
            rows += [self.of[name][i] for i in picks]
        loss = self.loss(_stacked([self.cases[i] for i in rows]), PatientDraws(list(streams.values()), self.views))
        loss.mean().backward()
        for p in self.parameters:
            per_row: Any = p.grad_sample
            p.grad_sample = per_row.unflatten(0, (len(streams), self.views)).mean(1)
        self.taught.hold()
        return float(loss.mean().detach())

    def finish(self) -> None:
        """The averaged weights go in, whichever check liked which: choosing among them by data would tell of it."""
        self.watch.best, self.watch.why = {}, ""
        super().finish()
        self.hooked.remove_hooks()

    def stop(self, step: int, row: Mapping[str, float]) -> str | None:
        """Never."""
        return None


def _stacked(rows: Sequence[Batch]) -> dict[str, Any]:
    """One batch of several batches of one."""
    out: dict[str, Any] = {}
    for key, value in rows[0].items():
        out[key] = torch.cat([r[key] for r in rows]) if isinstance(value, Tensor) else [v for r in rows for v in r[key]]
    return out
