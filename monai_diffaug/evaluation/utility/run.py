"""Does it help? All arms of a study, trained, tested and compared. It may be killed at any moment and run again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...io import atomic
from .cells import CellTrainer, Done, cells_of
from .data import Pool, labeled, real_pools, written
from .downstream import task_of, trained
from .figures import LOWER_IS_BETTER, Figures
from .statistics import Comparison, Floats, corrected, difference, patient_weights
from .study import CHECKS, Study
from .synthetic import Produce, Synthetic

__all__ = ["Forecast", "Utility", "forecast", "utility"]

EXPECTED: Mapping[str, str] = {"duplicated": "no difference", "shuffled": "hurts", "oracle": "helps"}
PILOT = 12  # steps of a training that is timed

Watch = Callable[[Done, int, int], None]


@dataclass(frozen=True)
class Utility:
    """What a study came to; :meth:`to_dict` is ``utility.json``."""

    study: Study
    results: tuple[dict[str, Any], ...]
    comparisons: tuple[Comparison, ...]
    checks: tuple[dict[str, Any], ...]
    generator: Mapping[str, Any] | None
    limitations: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Serialize."""
        return {
            "study": self.study.name,
            "task": self.study.task,
            "metrics": list(self.study.metrics),
            "lower_is_better": [m for m in self.study.metrics if m in LOWER_IS_BETTER],
            "arms": [
                {"name": a.name, "kind": a.kind, "method": a.method, "of": a.of, "classical": a.classical}
                for a in self.study.arms
            ],
            "results": list(self.results),
            "comparisons": [c.to_dict() for c in self.comparisons],
            "checks": list(self.checks),
            "generator": self.generator,
            "limitations": list(self.limitations),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Forecast:
    """What a study will do: trainings in all and done before, seconds of each, images to make."""

    trainings: int
    done: int
    seconds_each: float
    images: Mapping[str, int]

    @property
    def seconds(self) -> float:
        """Of the trainings that are left."""
        return (self.trainings - self.done) * self.seconds_each


def _prepared(
    study: Study, out: Path, data: Path | None, produce: Produce
) -> tuple[dict[str, Pool], CellTrainer, Synthetic]:
    lists = written(study, out / "real", data)
    pools = real_pools(lists, study)
    made = Synthetic(study, lists, pools["train"], out / "synthetic", produce)
    trainer = CellTrainer(study, pools, out / "cells", made)
    for cell in cells_of(study):
        labeled(pools["train"], cell.patients, cell.seed)  # refuses too few before the first training
    return pools, trainer, made


def utility(
    study: Study,
    out: str | Path,
    produce: Produce,
    data: str | Path | None = None,
    *,
    watch: Watch | None = None,
) -> Utility:
    """Train every arm, test it on real patients, and compare it with the control and with real images alone.

    Args:
        study: see :func:`.study.opened`.
        out: folder; what is there of the same study is not done again. ``utility.json`` is written at the end.
        produce: makes the synthetic images.
        data: the folder that the study's data lie in.
        watch: called after each training with it, their number so far and in all.

    Raises:
        DiffAugError: patients are on both sides, too few, or a generator cannot be used.
    """
    folder, begin = Path(out), time.monotonic()
    with atomic.claimed(folder):
        pools, trainer, made = _prepared(study, folder, None if data is None else Path(data), produce)
        cells, done = cells_of(study), list[Done]()
        for cell in cells:
            done.append(trainer(cell))
            if watch is not None:
                watch(done[-1], len(done), len(cells))
        found = _concluded(study, pools["test"], done, made.digests, time.monotonic() - begin)
        atomic.write_json(folder / "utility.json", _finite(found.to_dict()))
    return found


def forecast(study: Study, out: str | Path, produce: Produce, data: str | Path | None = None) -> Forecast:
    """How many trainings and images a study has, and how long a training takes here; a few steps are taken to see."""
    folder = Path(out)
    _, trainer, made = _prepared(study, folder, None if data is None else Path(data), produce)
    cells, task = cells_of(study), task_of(study)
    first = next(c for c in cells if c.arm.kind == "classical")
    batches = trainer.batches(first)
    _, warm = trained(task, study.training, batches, 0, steps=2)
    _, seconds = trained(task, study.training, batches, 0, steps=2 + PILOT)
    each = max(seconds - warm, 1e-3) / PILOT * study.training.steps
    images: dict[str, int] = {}
    for cell in cells:
        arm = study.source_of(cell.arm)
        if arm.kind == "diffusion" and (arm.learn or arm.name not in images):
            order = made.order(arm, cell if arm.learn else None)
            images[arm.name] = images.get(arm.name, 0) + made.size(order)
    done = len(list((folder / "cells").glob("*.json"))) if (folder / "cells").is_dir() else 0
    return Forecast(len(cells), min(done, len(cells)), each, images)


# --------------------------------------------------------------------------------------------------- conclusions


def _concluded(study: Study, test: Pool, done: Sequence[Done], digests: Mapping[str, str], seconds: float) -> Utility:
    figures = Figures(study, test)
    results = tuple(
        {
            "arm": d.cell.arm.name,
            "patients": d.cell.patients,
            "ratio": d.cell.ratio,
            "seed": d.cell.seed,
            "images": sum(d.images),
            "real_images": d.images[0],
            "metrics": figures.point(d.outputs),
            "per_class": figures.per_class(d.outputs),
            "per_group": figures.per_group(d.outputs),
            "seconds": d.seconds,
        }
        for d in done
    )
    comparisons = compared(study, figures, done)
    checks = _checked(study, comparisons)
    generator: dict[str, Any] | None = None
    if study.generator is not None:
        name = Path(study.generator.backbone).name
        generator = {"name": name, "digest": digests.get(name, ""), "patients_seen": study.generator.patients_seen}
        if others := {k: v for k, v in digests.items() if k != name}:
            generator["others"] = others
    return Utility(study, results, comparisons, checks, generator, _limits(study, figures, checks), round(seconds, 1))


def compared(study: Study, figures: Figures, done: Sequence[Done]) -> tuple[Comparison, ...]:
    """Every arm against the classical control and against real images alone, wherever all seeds are there.

    Holm's correction is over the arms with the same control, patients and metric; checks are a family of their own.
    """
    weights = patient_weights(figures.patient, study.draws)
    drawn: dict[tuple[str, int | str, float], list[dict[str, Floats]]] = {}
    for d in done:
        values = figures.values(d.outputs, weights)
        drawn.setdefault((d.cell.arm.name, d.cell.patients, d.cell.ratio), []).append(values)
    found: list[Comparison] = []
    for kind in ("classical", "real"):
        control = next(a for a in study.arms if a.kind == kind)
        for metric in study.metrics:
            for n in study.patients:
                found += _family(study, figures, drawn, control.name, n, metric)
    return tuple(found)


def _family(
    study: Study,
    figures: Figures,
    drawn: Mapping[tuple[str, int | str, float], list[dict[str, Floats]]],
    control: str,
    patients: int | str,
    metric: str,
) -> list[Comparison]:
    against = [v[metric] for v in drawn[control, patients, 0.0]]
    apart = {
        key: difference([v[metric] for v in values], against)
        for key, values in drawn.items()
        if key[0] != control and key[1] == patients
    }
    checks = {k: d.p for k, d in apart.items() if study.arm(k[0]).kind in CHECKS}
    p = {**corrected(checks), **corrected({k: d.p for k, d in apart.items() if k not in checks})}
    return [
        Comparison(
            k[0], control, patients, k[2], metric, d.difference, d.interval, d.p, p[k], len(figures.people)
        )
        for k, d in apart.items()
    ]  # fmt: skip


def _checked(study: Study, comparisons: Sequence[Comparison]) -> tuple[dict[str, Any], ...]:
    """What the checks were to show against the control under the main metric, and whether they did."""
    control = next(a.name for a in study.arms if a.kind == "classical")
    metric, rows = study.metrics[0], []
    sign = -1 if metric in LOWER_IS_BETTER else 1
    for c in comparisons:
        kind = study.arm(c.arm).kind
        if kind not in CHECKS or c.control != control or c.metric != metric:
            continue
        low, high = sorted(sign * x for x in c.interval)
        seen = "helps" if low > 0 else "hurts" if high < 0 else "no difference"
        rows.append(
            {
                "arm": c.arm,
                "kind": kind,
                "patients": c.patients,
                "expected": EXPECTED[kind],
                "seen": seen,
                "as_expected": seen == EXPECTED[kind],
                "difference": c.difference,
                "interval": c.interval,
            }
        )
    return tuple(rows)


def _limits(study: Study, figures: Figures, checks: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    said = list(study.limitations)
    generator = study.generator
    fewest = min((n for n in study.patients if isinstance(n, int)), default=math.inf)
    if generator is not None and generator.patients_seen is None:
        said.append(
            f"It is not known which patients {generator.backbone} was trained on; test patients may be among them."
        )
    elif generator is not None and (generator.patients_seen or 0) > fewest:
        said.append(
            f"The generator {generator.backbone} was trained on {generator.patients_seen} patients with their labels: "
            f"with {fewest} labeled patients its images carry what the others taught it, so a gain there is not one "
            f"that {fewest} patients alone would give."
        )
    said.append(
        f"Intervals are over {len(figures.people)} test patients, averaged over {len(study.seeds)} draws of labeled "
        "patients; how much another draw of labeled patients would change is not in them."
    )
    missing = [k for k in CHECKS if k not in {a.kind for a in study.arms}]
    if missing:
        said.append(f"The study leaves out checks of itself: {', '.join(missing)}.")
    for c in checks:
        if not c["as_expected"]:
            said.append(
                f"Check {c['arm']} at {c['patients']} patients: expected {c['expected']}, seen {c['seen']} "
                f"({c['difference']:+.3f})."
            )
    return tuple(said)


def _finite(data: Any) -> Any:
    """What JSON has no number for becomes null."""
    if isinstance(data, float | np.floating):
        return float(data) if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(k): _finite(v) for k, v in data.items()}
    return [_finite(v) for v in data] if isinstance(data, list | tuple) else data
