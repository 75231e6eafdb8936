"""Synthetic DICOM files to a hospital's archive: C-STORE to a DICOM node, STOW-RS to a DICOMweb server.

Only files that say they are synthetic are sent. What the archive has taken is written down beside them, so that a run
that was stopped goes on; sending twice does no harm, since the UIDs stay the same.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..types import DiffAugError
from . import dicom_out
from .dicom_in import headers

__all__ = ["Sent", "send"]

Progress = Callable[[int, int, str], None]
_SECONDS = 20.0
_NODE = re.compile(r"(?P<title>[^@/]{1,16})@(?P<host>\[[^\]]+\]|[^:@/]+):(?P<port>\d{1,5})")
_WARNINGS = range(0xB000, 0xC000)  # stored, with a remark (PS3.4 table B.2-1)
_REASONS = {
    0xA700: "it is out of space",
    0xA900: "it says that the data set does not fit its SOP class",
    0x0122: "it does not take this SOP class",
    0x0124: "it does not allow this",
}


@dataclass(frozen=True)
class Sent:
    """How many files the archive took now, how many before, and where they went (never a password)."""

    now: int
    before: int
    to: str


def send(
    source: str | Path,
    to: str,
    *,
    calling: str = "DIFFAUG",
    progress: Progress | None = None,
) -> Sent:
    """Store the synthetic DICOM files of a folder in an archive.

    Args:
        source: a file, or a folder that is looked through with all that is in it.
        to: ``TITLE@host:port`` of a DICOM node, or the address of a DICOMweb service, ``https://host/dicom-web``. A
            user and a password may stand in the address, or in ``~/.netrc``.
        calling: the title by which the node knows us.
        progress: called with files done, files in all and the name of the last.

    Raises:
        DiffAugError: a file is not synthetic, or the archive is not there, refuses us or refuses a file; what it had
            taken until then stays taken, and is not sent again.
    """
    source = Path(source).expanduser()
    files = _synthetic(source)
    shown, opened = _opened(to, calling, files)
    journal = (
        source if source.is_dir() else source.parent
    ) / f".sent-{hashlib.sha256(shown.encode()).hexdigest()[:12]}"
    taken = set(journal.read_text(encoding="ascii").split("\n")) if journal.is_file() else set()
    waiting = {uid: path for uid, path in files.items() if uid not in taken}
    before = len(files) - len(waiting)
    if progress is not None:
        progress(before, len(files), "")
    if not waiting:
        return Sent(0, before, shown)
    done = before
    try:
        with opened() as store, _noted(journal) as note:
            for uid, path in waiting.items():
                store(path)
                note(uid)
                done += 1
                if progress is not None:
                    progress(done, len(files), path.name)
    except DiffAugError as error:
        more = f" ({done} of {len(files)} files are stored; run the same command again to go on)" if done else ""
        raise DiffAugError(f"{error}{more}") from None
    return Sent(done - before, before, shown)


def _synthetic(source: Path) -> dict[str, Path]:
    """SOP instance UID -> file, of all DICOM files.

    Raises:
        DiffAugError: there is none, or one was not made by this package.
    """
    from pydicom import dcmread

    if not source.exists():
        raise DiffAugError(f"{source} does not exist: correct the path")
    found: dict[str, Path] = {}
    for file in headers.files_in(source) if source.is_dir() else [source]:
        if not headers.is_dicom(file):
            continue
        if not dicom_out.said_in(file):
            raise DiffAugError(
                f"{file} does not say that it is synthetic: only what diffaug has made is sent, move it away"
            )
        found[str(dcmread(file, specific_tags=["SOPInstanceUID"], stop_before_pixels=True).SOPInstanceUID)] = file
    if not found:
        raise DiffAugError(f"{source} holds no DICOM file: make some with `diffaug export`")
    return found


@contextmanager
def _noted(journal: Path) -> Iterator[Callable[[str], None]]:
    """A journal to write a line in for each file that was stored; a folder that cannot be written has none."""
    try:
        handle = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        yield lambda uid: None
        return
    try:
        yield lambda uid: (os.write(handle, f"{uid}\n".encode()), None)[1]  # whole lines, and at once
    finally:
        os.close(handle)


def _opened(to: str, calling: str, files: dict[str, Path]) -> tuple[str, Any]:
    """The archive's address without secrets, and what opens the way to it."""
    if to.startswith(("http://", "https://")):
        parts = urlsplit(to.rstrip("/"))
        shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        return shown, lambda: _web(shown, parts.username, parts.password)
    node = _NODE.fullmatch(to)
    if node is None or not 0 < int(node["port"]) < 65536:
        raise DiffAugError(f"{to!r} is no archive: give TITLE@host:port, or the https:// address of a DICOMweb service")
    return to, lambda: _node(node["title"], node["host"].strip("[]"), int(node["port"]), calling, files)


# ------------------------------------------------------------------------------------------------------ DICOM node


@contextmanager
def _node(title: str, host: str, port: int, calling: str, files: dict[str, Path]) -> Iterator[Callable[[Path], None]]:
    """An association with a DICOM node."""
    from pydicom import dcmread
    from pynetdicom import AE

    where = f"{title}@{host}:{port}"
    kinds = {_kind(path) for path in files.values()}
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = _SECONDS
    for sop_class, syntax in sorted(kinds):
        entity.add_requested_context(sop_class, syntax)
    association = entity.associate(host, port, ae_title=title)
    if not association.is_established:
        entity.shutdown()
        if association.is_rejected:
            raise DiffAugError(
                f"{where} refuses us: have it know the title {calling!r} (--calling), and check {title!r}"
            )
        raise DiffAugError(f"{where} does not answer: check host and port, and that the archive runs")

    def store(path: Path) -> None:
        try:
            status = association.send_c_store(dcmread(path))
        except ValueError:  # no presentation context
            raise DiffAugError(f"{where} does not take {path.name}: allow its SOP class there") from None
        except RuntimeError:
            status = None
        if not status:
            raise DiffAugError(f"{where} broke off at {path.name}: see whether the archive still runs")
        if status.Status and status.Status not in _WARNINGS:
            said = str(status.get("ErrorComment", "")) or _REASONS.get(status.Status, "see its log")
            raise DiffAugError(f"{where} refuses {path.name} (status {status.Status:#06x}): {said}")

    try:
        yield store
    finally:
        if association.is_established:
            association.release()
        entity.shutdown()


def _kind(path: Path) -> tuple[str, str]:
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)


# -------------------------------------------------------------------------------------------------------- DICOMweb


@contextmanager
def _web(url: str, user: str | None, password: str | None) -> Iterator[Callable[[Path], None]]:
    """A session with a DICOMweb service."""
    import requests
    from dicomweb_client import DICOMwebClient
    from pydicom import dcmread

    session = requests.Session()
    if user is not None:
        session.auth = (user, password or "")
    with closing(session):
        client = DICOMwebClient(url, session=session)
        client.set_http_retry_params(retry=False)

        def store(path: Path) -> None:
            try:
                answer = client.store_instances([dcmread(path)])
            except requests.HTTPError as error:
                code = error.response.status_code if error.response is not None else 0
                raise DiffAugError(f"{url} refuses {path.name}: {_said(code)}") from None
            except (requests.RequestException, ValueError) as error:
                if isinstance(error, ValueError) and not isinstance(error, requests.RequestException):
                    raise DiffAugError(f"{url} answers, but not as DICOMweb: check the path of the address") from None
                raise DiffAugError(f"{url} does not answer: check the address, and that the archive runs") from None
            failed = answer.get("FailedSOPSequence")
            if failed:
                reason = int(failed[0].get("FailureReason", 0))
                why = _REASONS.get(reason, "see its log")
                raise DiffAugError(f"{url} refuses {path.name} (reason {reason:#06x}): {why}")

        yield store


def _said(code: int) -> str:
    """What an HTTP status means to who sends."""
    known = {
        401: "it wants a user and password, give them in ~/.netrc or in the address",
        403: "the user may not store there, ask the archive's administrator",
        404: "there is no DICOMweb service at this path, correct the address",
        405: "this path takes no files, correct the address",
        409: "it says that the instance does not fit, see its log",
        413: "the file is larger than it allows",
    }
    return known.get(code, f"it answers with status {code}, see its log")
