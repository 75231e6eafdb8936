"""The worked report of docs/reports/brain_mri: slices of training patients varied, judged on patients never seen.

    python -m tests.benchmarks.worked_report DATA OUT --utility FILE --pictures docs/reports/brain_mri \\
        --volumes bundles/brain_mri_latent_diffusion_3d

DATA holds brain_lgg_2d and brain_lgg_3d; OUT gets the slices, the run and the report; FILE is a study's utility.json.
What is done already in OUT is kept: remove OUT/run/audit.json, say, to have it made anew.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from monai_diffaug.domains import part_of
from monai_diffaug.io.atomic import write_json

SIZE = 96
SEXES = {"1": "sex code 1", "2": "sex code 2"}  # the source does not say which is which
METHODS = ("da_fusion", "healthy_counterfactual")
CHROMIUM = "/usr/bin/chromium"
SECTIONS = ("pictures", "real", "help", "leak", "fair")


def rows(data: Path) -> list[dict[str, str]]:
    """Slices of brain_lgg_2d with their patients' sex and age from brain_lgg_3d."""
    with (data / "brain_lgg_3d/dev/labels.csv").open(newline="") as f:
        about = {r["patient"]: r for r in csv.DictReader(f)}
    with (data / "brain_lgg_2d/dev/labels.csv").open(newline="") as f:
        return [{**about.get(r["patient"], {}), **r} for r in csv.DictReader(f)]


def entry(row: dict[str, str], data: Path, out: Path, number: int) -> dict[str, object]:
    """Write one FLAIR slice and its mask; returns its line of the datalist."""
    names = {k: f"{k}/slice{number:03d}.png" for k in ("images", "masks")}
    for kind, column in (("images", "file"), ("masks", "mask")):
        picture = Image.open(data / "brain_lgg_2d/dev" / row[column])
        picture = picture.getchannel("G") if kind == "images" else picture.convert("L")
        how = Image.Resampling.BOX if kind == "images" else Image.Resampling.NEAREST
        (out / names[kind]).parent.mkdir(parents=True, exist_ok=True)
        picture.resize((SIZE, SIZE), how).save(out / names[kind])
    said = {"image": names["images"], "label": names["masks"], "class": ("healthy", "tumor")[int(row["tumour"])]}
    said |= {"patient": row["patient"], "site": row["site"]}
    if row.get("gender"):
        said["sex"] = SEXES.get(row["gender"], "unknown")
    if row.get("age", "").isdigit():
        said["age"] = int(row["age"])
    return said


def typical(found: list[dict[str, str]], kind: str) -> list[dict[str, str]]:
    """Of each patient the slice with most of the lesion, or the lesion-free one nearest the middle of the head."""

    def place(r: dict[str, str]) -> float:
        return abs(int(r["slice"]) / int(r["n_slices"]) - 0.55) if kind == "0" else -int(r["lesion_pixels"])

    best: dict[str, dict[str, str]] = {}
    for r in sorted((r for r in found if r["tumour"] == kind), key=place):
        best.setdefault(r["patient"], r)
    return [best[p] for p in sorted(best)]


def write_slices(data: Path, out: Path, part: str, most: int | None) -> Path:
    """A datalist of one part's slices; if of ``most``, one a patient, with a lesion and without one by turns."""
    chosen = [r for r in rows(data) if part_of(r["patient"]) == part]
    if most:
        without, lesion = (typical(chosen, kind) for kind in "01")
        chosen = [r for pair in zip(without[: most // 2], lesion[-(most // 2) :], strict=True) for r in pair]
    entries = [entry(r, data, out, i) for i, r in enumerate(chosen, 1)]
    head = {"licence": "CC BY-NC-SA 4.0 (images CC BY 3.0, masks CC BY-NC-SA 4.0)"}
    write_json(out / "datalist.json", {**head, "training": entries})
    return out / "datalist.json"


def diffaug(*words: object) -> None:
    """Run a command as a user does; 1 is a verdict of the audit, everything else a fault."""
    print("diffaug", *words, flush=True)
    done = subprocess.run([sys.executable, "-m", "monai_diffaug", *map(str, words)], check=False).returncode
    if done > (words[0] == "audit"):
        raise SystemExit(done)


def write_volumes(data: Path, out: Path, count: int = 3) -> None:
    """A datalist of volumes of test patients."""
    folder = data / "brain_lgg_3d/dev"
    with (folder / "labels.csv").open(newline="") as f:
        found = [r for r in csv.DictReader(f) if part_of(r["patient"]) == "test" and 30 < int(r["n_slices"]) < 60]
    entries = [
        {
            "image": str((folder / r["file"]).resolve()),
            "label": str((folder / r["label_file"]).resolve()),
            "patient": r["patient"],
        }
        for r in found[:count]
    ]
    write_json(out / "datalist.json", {"training": entries})


def photographed(page: Path, folder: Path, sections: dict[str, str], top: str = "") -> None:
    """Pictures of the page's sections, name -> selector, by a real browser; and of its top."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": 1240, "height": 720})
        shown.goto(page.resolve().as_uri())
        shown.wait_for_timeout(500)
        taken = {top: shown.screenshot()} if top else {}
        for name, where in sections.items():
            taken[name] = shown.locator(where).first.screenshot()
        browser.close()
    for name, data in taken.items():
        picture = Image.open(BytesIO(data)).convert("RGB")
        picture.quantize(256, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)


def make_slices(data: Path, out: Path, utility: Path | None) -> Path:
    """The run of slices, whatever judges it, and its report."""
    few, train, test = (out / k for k in ("slices", "train", "test"))
    for folder, part, most in ((few, "train", 40), (train, "train", None), (test, "test", None)):
        if not (folder / "datalist.json").is_file():
            write_slices(data, folder, part, most)
    run = out / "run"
    if not (run / "datalist.json").is_file():
        methods = [w for m in METHODS for w in ("--method", m)]
        diffaug("expand", few, "--backbone", "brain_mri", *methods, "--out", run)
    if not (run / "scores.json").is_file():
        diffaug("evaluate", test, run, "--extractor", "brain_mri", "--by", "sex", "--by", "site",
                "--out", run / "scores.json")  # fmt: skip
    if not (run / "audit.json").is_file():
        diffaug("audit", train, run, "--unseen", test, "--model", "brain_mri", "--extractor", "brain_mri",
                "--attribute", "sex", "--samples", 60, "--attacked", 60, "--out", run / "audit.json")  # fmt: skip
    if utility is not None:
        shutil.copy(utility, run / "utility.json")
    diffaug("report", run, "--out", out / "report.html")
    return out / "report.html"


def make_volumes(data: Path, out: Path, bundle: Path) -> Path:
    """The run of volumes, and its report."""
    run = out / "run_3d"
    if not (run / "datalist.json").is_file():
        write_volumes(data, out / "volumes")
        diffaug("expand", out / "volumes", "--backbone", bundle, "--method", "sdedit:strength=0.4,steps=16",
                "--no-sheet", "--out", run)  # fmt: skip
    diffaug("report", run, "--out", out / "report_3d.html")
    return out / "report_3d.html"


def main() -> None:
    """Every step that is not done yet, then the reports."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("data", type=Path)
    said.add_argument("out", type=Path)
    said.add_argument("--utility", type=Path, help="utility.json of a study of the same backbone")
    said.add_argument("--pictures", type=Path, help="folder for the page and pictures of it")
    said.add_argument("--volumes", type=Path, help="bundle of a backbone of volumes, for a report of three")
    told = said.parse_args()
    page = make_slices(told.data, told.out, told.utility)
    if told.pictures:
        photographed(page, told.pictures, {s: f"#{s}" for s in SECTIONS}, "summary")
        shutil.copy(page, told.pictures / "report.html")
    if told.volumes:
        page = make_volumes(told.data, told.out, told.volumes)
        if told.pictures:
            photographed(page, told.pictures, {"volumes": ".pair"})


if __name__ == "__main__":
    main()
