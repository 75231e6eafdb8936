"""What a study came to, to look at: the table that fills in, a table for a spreadsheet, curves."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...io.atomic import write_bytes
from .cells import Done
from .study import CHECKS, Study

__all__ = ["Filling", "draw", "write_table"]

INK, QUIET = "#1b1f24", "#6a737d"
COLORS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c4554d", "#9f6b53", "#337ea9", "#8d8a3f", "#c14c8a", "#4b5563")
PANELS = (
    ("augmentations of real images", ("real", "classical", "mixup", "cutout", "cutmix", "patchshuffle")),
    ("with synthetic images", ("classical", "diffusion", "synthetic_only", "pretraining")),
    ("checks of the study", ("classical", *CHECKS)),
)


class Filling:
    """Rows of arms and columns of labeled patients; a field says how many trainings are done and, once seen, how long
    they took. Figures are shown at the end only, when nobody can stop where they please.
    """

    def __init__(self, study: Study):
        self.study = study
        self.columns = [str(n) for n in study.patients]
        self._done: dict[tuple[str, str], list[float]] = {}

    def add(self, done: Done) -> None:
        """One more training."""
        self._done.setdefault((done.cell.arm.name, str(done.cell.patients)), []).append(done.seconds)

    def rows(self) -> list[tuple[str, ...]]:
        """An arm's name and a field for each number of patients."""
        rows = []
        for arm in self.study.arms:
            fields = []
            for n in self.study.patients:
                wanted = len(self.study.seeds) * len(self.study.ratios_of(arm))
                seen = self._done.get((arm.name, str(n)), [])
                text = f"{len(seen)}/{wanted}" + (f"  {np.mean(seen):.0f} s" if seen else "")
                fields.append(text if n in self.study.patients_of(arm) else "-")
            rows.append((arm.name, *fields))
        return rows


def write_table(said: Mapping[str, Any], path: Path) -> None:
    """One line for each arm, number of patients and ratio: means over seeds, and differences to both controls.

    Args:
        said: what ``utility.json`` holds.
        path: of the CSV file.
    """
    kinds = {a["name"]: a["kind"] for a in said["arms"]}
    controls = [next(n for n, k in kinds.items() if k == kind) for kind in ("classical", "real")]
    columns = ["arm", "kind", "patients", "ratio", "seeds", "images", *said["metrics"]]
    columns += [
        f"{m} minus {c}{e}" for m in said["metrics"] for c in controls for e in ("", " low", " high", " p Holm")
    ]
    buffer = StringIO()
    table = csv.DictWriter(buffer, columns, lineterminator="\n")
    table.writeheader()
    for (arm, patients, ratio), rows in grouped(said).items():
        line: dict[str, Any] = {"arm": arm, "kind": kinds[arm], "patients": patients, "ratio": f"{ratio:g}"}
        line |= {"seeds": len(rows), "images": round(np.mean([r["images"] for r in rows]))}
        line |= {m: f"{np.mean([r['metrics'][m] for r in rows]):.4f}" for m in said["metrics"]}
        for c in said["comparisons"]:
            if (c["arm"], c["patients"], c["ratio"]) == (arm, patients, ratio):
                name = f"{c['metric']} minus {c['control']}"
                low, high = c["interval"]
                ends = (("", c["difference"]), (" low", low), (" high", high), (" p Holm", c["p_corrected"]))
                line |= {name + end: f"{value:.4f}" for end, value in ends}
        table.writerow(line)
    write_bytes(path, buffer.getvalue().encode())


def grouped(said: Mapping[str, Any]) -> dict[tuple[str, Any, float], list[Mapping[str, Any]]]:
    """Results of all seeds by arm, patients and ratio."""
    found: dict[tuple[str, Any, float], list[Mapping[str, Any]]] = {}
    for r in said["results"]:
        found.setdefault((r["arm"], r["patients"], r["ratio"]), []).append(r)
    return found


def draw(said: Mapping[str, Any], path: Path, metric: str | None = None) -> None:
    """The main metric against the number of labeled patients, one line an arm and ratio.

    The bars are 95 % intervals of the difference to the control, laid around the arm's mean: an arm whose bar does not
    reach the control's line differs from it.

    Args:
        said: what ``utility.json`` holds.
        path: of the PNG file.
        metric: another one.
    """
    metric = metric or said["metrics"][0]
    kinds = {a["name"]: a["kind"] for a in said["arms"]}
    panels = [(t, [n for n, k in kinds.items() if k in of]) for t, of in PANELS]
    panels = [(t, names) for t, names in panels if len(names) > 1]
    figure = Figure(figsize=(5.2 * len(panels) + 0.4, 5.6), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    columns = list(dict.fromkeys(str(r["patients"]) for r in said["results"]))
    for ax, (title, names) in zip(axes, panels, strict=True):
        _panel(ax, said, metric, names, kinds, columns)
        ax.set_title(title, loc="left", fontsize=11, color=INK)
    axes[0].set_ylabel(metric.replace("_", " "), color=INK)
    people = said["comparisons"][0]["n_patients"] if said["comparisons"] else 0
    seeds = len({r["seed"] for r in said["results"]})
    figure.suptitle(
        f"{said['study'].replace('_', ' ')}: {people} test patients, mean of {seeds} seeds; "
        "bars: 95 % interval of the difference to the control",
        x=0.01,
        ha="left",
        fontsize=11,
        color=QUIET,
    )
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def _panel(
    ax: Any, said: Mapping[str, Any], metric: str, names: list[str], kinds: Mapping[str, str], columns: list[str]
) -> None:
    groups = {k: v for k, v in grouped(said).items() if k[0] in names}
    lines = list(dict.fromkeys((arm, ratio) for arm, _, ratio in groups))
    lines.sort(key=lambda line: kinds[line[0]] != "classical")
    control = next(n for n, k in kinds.items() if k == "classical")
    for i, (arm, ratio) in enumerate(lines):
        points = [
            (columns.index(str(n)), np.mean([r["metrics"][metric] for r in v]), n)
            for (a, n, q), v in groups.items()
            if (a, q) == (arm, ratio)
        ]
        main = kinds[arm] == "classical"
        several = len({q for a, q in lines if a == arm}) > 1
        label = f"{arm} ({ratio:g} to 1)" if several else arm
        color = INK if main else COLORS[(i - 1) % len(COLORS)]
        shift = 0.0 if main else (i - 0.5 - len(lines) / 2) * 0.055
        x, y = [p[0] + shift for p in points], [float(p[1]) for p in points]
        ax.plot(
            x, y, "-o", color=color, label=label, lw=2.6 if main else 1.5, ms=5 if main else 4, zorder=5 if main else 3
        )
        for p, xi, yi in zip(points, x, y, strict=True):
            for c in said["comparisons"]:
                if (c["arm"], c["ratio"], c["patients"], c["metric"], c["control"]) == (
                    arm,
                    ratio,
                    p[2],
                    metric,
                    control,
                ):
                    low, high = (yi - c["difference"] + e for e in c["interval"])
                    ax.plot([xi, xi], [low, high], color=color, lw=1, alpha=0.6, zorder=2)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_xlabel("labeled patients", color=INK)
    ax.grid(axis="y", color="#e5e7eb", lw=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False, loc="best")
