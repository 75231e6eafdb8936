"""Small scans on disk, the exact denoiser of them, and processes that can be killed."""

import ctypes
import hashlib
import json
import os
import signal
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_diffaug.primitives.fitting import resampled
from monai_diffaug.testing import ideal_backbone


@pytest.fixture(scope="session")
def heads():
    """2D, 16 x 16, classes healthy and tumor; knows its twelve images exactly."""
    return ideal_backbone(2, size=16)


@pytest.fixture(scope="session")
def volumes():
    return ideal_backbone(3, size=8)


def points(backbone):
    return backbone.network.module.points


@pytest.fixture
def scans(tmp_path, heads):
    """A datalist of six PNGs of 24 x 24, with masks of the spots."""
    folder = tmp_path / "scans"
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    entries = []
    for i, image in enumerate(points(heads)[:6]):
        big = ((resampled(image, (24, 24))[0] + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        Image.fromarray(big).save(folder / "images" / f"{i}.png")
        mask = ((big > 200) * 255 * (i % 2)).astype("uint8")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        kind = ("healthy", "tumor")[i % 2]
        entries.append({"image": f"images/{i}.png", "label": f"masks/{i}.png", "class": kind, "patient": f"p{i}"})
    path = folder / "datalist.json"
    path.write_text(json.dumps({"licence": "CC0", "training": entries}))
    return path


@pytest.fixture
def nifti_scans(tmp_path, volumes):
    """A folder of three NIfTI volumes with a tilted affine and int16 intensities."""
    folder = tmp_path / "volumes"
    folder.mkdir()
    affine = np.diag([-1.5, -1.5, 2.0, 1.0])
    affine[:3, 3] = (5, 6, 7)
    for i, image in enumerate(points(volumes)[:3]):
        array = ((resampled(image, (10, 10, 9))[0] + 1) * 500).numpy().astype("int16")
        nib.save(nib.Nifti1Image(array, affine), folder / f"case{i}.nii.gz")
    return folder


def files_of(folder):
    """Relative path -> SHA-256 of every file."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Forked:
    """Runs a function in a child process of its own, which knows what is loaded here already."""

    def __init__(self, function):
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                torch.set_num_threads(1)  # a forked child has none of its parent's threads
                code = function() or 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            finally:
                os._exit(code)

    def wait(self, limit=120.0):
        """Exit code, minus the signal if it was killed."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        self.kill()
        raise AssertionError("the child hangs")

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


NO_MOUNT = 77


def with_disk(folder, options, function, read_only=False):
    """Run a function in a child for which ``folder`` is a disk of its own; ``NO_MOUNT`` where that is not allowed."""

    def run():
        libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        if libc.unshare(0x10000000 | 0x00020000):  # a user and a mount namespace
            return NO_MOUNT
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        if libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None):
            return NO_MOUNT
        if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, options.encode()):
            return NO_MOUNT
        if read_only and libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0x20 | 0x1, options.encode()):
            return NO_MOUNT
        return function()

    return Forked(run).wait()
