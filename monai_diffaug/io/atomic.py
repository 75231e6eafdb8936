"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..types import DiffAugError

__all__ = ["claimed", "clear", "write_bytes", "write_folder", "write_json"]

PART = ".part"
"""Ending of a file that is still being written; its name starts with a dot."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}


def refusal(path: Path, error: OSError) -> DiffAugError:
    """What to tell the user when ``path`` cannot be written."""
    if error.errno in _FULL:
        return DiffAugError(
            f"{path} cannot be written, the disk is full: free some space and run the same command again"
        )
    if error.errno in _FORBIDDEN:
        return DiffAugError(f"{path} cannot be written, the folder is read-only: give another output folder")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return DiffAugError(f"{path} cannot be written, a file is where a folder should be: give another output folder")
    return DiffAugError(f"{path} cannot be written ({error.strerror or error}): give another output folder")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, making its folder; an earlier file is replaced in one step.

    Raises:
        DiffAugError: the disk is full, the folder is read-only, and the like. Nothing is left behind then.
    """
    path = Path(path)
    part = path.parent / f".{path.name}.{os.getpid()}{PART}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a crash of the machine may leave the name without the content
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise refusal(path, error) from None


def write_folder(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files, there with all of them or not at all; an earlier folder of that name is replaced.

    Raises:
        DiffAugError: as for :func:`write_bytes`, or a file has the folder's name.
    """
    path = Path(path)
    part, old = (path.parent / f".{path.name}.{os.getpid()}{kind}{PART}" for kind in ("", ".old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.mkdir()
            for name, data in files.items():
                with open(part / name, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            if path.is_dir():  # no system replaces a folder that is not empty in one step
                os.replace(path, old)
            os.replace(part, path)
        finally:
            for left in (part, old):
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise refusal(path, error) from None


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON; lists of objects get one line per object, so that they can be read and compared."""
    write_bytes(path, (_pretty(data) + "\n").encode())


def _pretty(data: Any) -> str:
    if not isinstance(data, dict):
        return json.dumps(data, indent=2)
    lines = []
    for key, value in data.items():
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            rows = ",\n".join(f"    {json.dumps(v)}" for v in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: " + json.dumps(value, indent=2).replace("\n", "\n  "))
    return "{\n" + ",\n".join(lines) + "\n}"


def clear(folder: str | Path) -> None:
    """Remove what writers that were killed have left in ``folder``."""
    for part in list(Path(folder).rglob(f".*{PART}")):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


@contextmanager
def claimed(folder: str | Path) -> Iterator[Path]:
    """``folder``, made if need be, for this process alone while the block runs. Killed, the claim goes with it.

    Raises:
        DiffAugError: another process has claimed it, or it cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise refusal(folder, error) from None
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on this system
        pass
    except BlockingIOError:
        os.close(handle)
        raise DiffAugError(f"another run is at work in {folder}: wait for it, or give another output folder") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield folder
    finally:
        os.close(handle)
