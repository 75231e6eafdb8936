"""A file is there whole or not at all, and a folder belongs to one process at a time."""

import errno
import json
import os
import subprocess
import sys

import pytest

from monai_diffaug.io import atomic
from monai_diffaug.types import DiffAugError


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EROFS, "read-only"), (errno.EIO, "output")],
)
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, number, says, at):
    atomic.write_bytes(tmp_path / "a", b"before")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, at, fail)
    with pytest.raises(DiffAugError, match=says) as caught:
        atomic.write_bytes(tmp_path / "a", b"after")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_leftovers_are_cleared(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f".x.png.123{atomic.PART}").write_bytes(b"half")
    (tmp_path / "images" / "x.png").write_bytes(b"whole")
    atomic.clear(tmp_path)
    assert os.listdir(tmp_path / "images") == ["x.png"]


def test_json_has_a_line_for_each_entry(tmp_path):
    data = {"a": 1, "training": [{"image": "x"}, {"image": "y"}], "none": []}
    atomic.write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == data
    assert '    {"image": "x"},\n    {"image": "y"}\n' in text


def test_a_folder_is_claimed_by_one_process(tmp_path):
    code = (
        "import sys\n"
        "sys.path[:0] = [sys.argv[2]]\n"
        "import fcntl, os\n"
        "handle = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "."], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline().strip() == b"held"
        with pytest.raises(DiffAugError, match="another run is at work"), atomic.claimed(tmp_path):
            pass
        other.kill()  # a killed owner leaves no claim behind
        other.wait()
        with atomic.claimed(tmp_path) as folder:
            assert folder == tmp_path
    finally:
        other.kill()
        other.communicate()


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(DiffAugError, match="a file is where a folder should be"), atomic.claimed(tmp_path / "out"):
        pass
