"""Files per second of `diffaug import` on DICOM, beside plain pydicom reading in the same run.

    python -m tests.benchmarks.importing --data FOLDER [--files 1000] [--workers 1] [--rounds 3]

FOLDER holds a few real CT files of 512 x 512. They are written out as series of 100 slices with UIDs and positions of
their own. Plain reading is `dcmread` and `pixel_array` of every file, one after the other. Import reads every header,
sorts, checks, looks for burned-in writing, converts to Hounsfield units and writes volumes, datalist and report. Rounds
alternate, so that all see the same machine; the best of each is printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom.uid import generate_uid

from monai_diffaug.domains import part_of
from monai_diffaug.io.intake import intake

SLICES = 100


def written(sources: list[Path], folder: Path, count: int) -> None:
    """``count`` files in series of 100 slices, five series a patient."""
    for s in range(0, count, SLICES):
        data = pydicom.dcmread(sources[s // SLICES % len(sources)])
        study, series = generate_uid(), generate_uid()
        data.PatientID = f"BENCH-{s // SLICES // 5:05d}"
        for i in range(min(SLICES, count - s)):
            data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = study, series, i + 1
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            data.ImagePositionPatient = [*list(data.ImagePositionPatient)[:2], 2.0 * i]
            path = folder / f"{s // SLICES:03d}" / f"{i:04d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            data.save_as(path)


def plain(folder: Path, files: list[Path]) -> None:
    """What a script would do."""
    for path in files:
        _ = pydicom.dcmread(path).pixel_array


def importing(workers: int, **options: bool) -> Callable[[Path, list[Path]], None]:
    """Import into a folder that is thrown away."""

    def run(folder: Path, files: list[Path]) -> None:
        with tempfile.TemporaryDirectory() as out:
            secret = Path(out) / "key"
            done = intake(folder, Path(out) / "o", usual=part_of, secret=secret, workers=workers, **options)
            assert done.report["files"] == len(files)
            assert done.report["left_out"] == 0

    return run


def main() -> None:
    """Print a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="a folder with real CT files")
    arguments.add_argument("--files", type=int, default=1000)
    arguments.add_argument("--workers", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    warnings.simplefilter("ignore")
    ways = {
        "plain pydicom: dcmread and pixel_array": plain,
        "import to .nii.gz": importing(given.workers),
        "import to .nii": importing(given.workers, compress=False),
        "import to .nii.gz and de-identified DICOM": importing(given.workers, keep_dicom=True),
    }
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        sources = sorted(p for p in given.data.iterdir() if p.is_file())
        written(sources, folder, given.files)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        best = dict.fromkeys(ways, (float("inf"), float("inf")))
        for _ in range(given.rounds):
            for name, way in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                way(folder, files)
                seconds = time.perf_counter() - wall, time.process_time() - processor
                best[name] = min(best[name], seconds)
    print(f"{len(files)} files of CT, {given.workers} process(es), best of {given.rounds}")
    print("| way | seconds | files/s | processor seconds |\n|---|---|---|---|")
    for name, (wall, processor) in best.items():
        print(f"| {name} | {wall:.1f} | {len(files) / wall:.0f} | {processor:.1f} |")


if __name__ == "__main__":
    main()
