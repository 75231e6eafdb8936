"""Series from a DICOMweb server (QIDO-RS to find them, WADO-RS to get them), as Orthanc and most archives offer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..types import DiffAugError
from .importing import Found
from .problems import UNREACHABLE, BadInput, Problem
from .pseudonyms import Pseudonyms
from .work import Result, Rules

__all__ = ["TOKEN", "WebSeries", "search"]

TOKEN = "DIFFAUG_DICOMWEB_TOKEN"
"""Environment variable with a bearer token, or ``user:password``."""

PAGE = 200


@dataclass(frozen=True)
class WebSeries:
    """One series on a server: fetched to a folder of its own, converted, and forgotten."""

    url: str
    patient: str
    study: str
    series: str
    count: int
    split: str = ""

    @property
    def place(self) -> Path:
        """How it is named on the screen."""
        return Path(f"series {self.series}")

    def name(self, names: Pseudonyms) -> str:
        """Patient and series, as the series would be named if it came from a folder."""
        return f"{names.patient(self.patient)}_{names.token(f'{self.study} {self.series}')}"

    def content(self, names: Pseudonyms) -> str:
        """Hash over the series and how many instances it has."""
        return names.token(f"{self.series} {self.count}") + f"-{self.count}"

    def run(self, rules: Rules) -> Result:
        """Fetch and convert."""
        from .dicom_in.headers import frames_of
        from .dicom_in.scan import grouped

        result = Result()
        with tempfile.TemporaryDirectory(prefix="diffaug-") as folder:  # readable by its owner only
            try:
                files = list(_fetched(self, Path(folder)))
            except OSError as error:
                result.problems.append(Problem(UNREACHABLE, self.place, _why(error)))
                return result
            frames = []
            for file in files:
                try:
                    frames += frames_of(file)
                except BadInput as error:
                    result.problems.append(error.problem)
            works, problems = grouped(frames)
            result.problems += problems
            result.files = len(files)
            for work in works:
                more = work.run(rules)
                result.entries += more.entries
                result.problems += more.problems
        result.problems = [_placed(p, self.place) for p in result.problems]
        return result


def _placed(problem: Problem, place: Path) -> Problem:
    """Its file is gone: the series is what can be named."""
    return Problem(problem.kind, place, problem.text, problem.lost)


def search(url: str, modalities: Sequence[str] = (), patients: Sequence[str] = ()) -> Found:
    """The series that a server has.

    Args:
        url: the service's root, such as ``https://pacs/dicom-web``.
        modalities: those wanted; all unless given.
        patients: patient identifiers (``*`` and ``?`` match); all unless given.

    Raises:
        DiffAugError: the server cannot be reached, refuses, or has nothing that fits.
    """
    client = _client(url)
    found: dict[str, WebSeries] = {}
    for patient in patients or ("",):
        for modality in modalities or ("",):
            found |= _matching(client, url, patient, modality.upper())
    if not found:
        what = ", ".join([*patients, *modalities]) or "images"
        raise DiffAugError(f"{url} has no series of {what}: check --patient and --modality")
    works = sorted(found.values(), key=lambda s: (s.patient, s.study, s.series))
    return Found(works, len(works))


def _matching(client: Any, url: str, patient: str, modality: str) -> dict[str, WebSeries]:
    """Series of a patient and a modality. What a server returns is checked: some ignore a filter that they do not know.

    Others take ``*`` for itself when it comes encoded, as Orthanc does; then all series are looked through here.
    """
    filters = {k: v for k, v in (("PatientID", patient), ("Modality", modality)) if v}
    tries = [filters]
    if set(patient) & set("*?"):
        tries.append({k: v for k, v in filters.items() if k != "PatientID"})
    for wanted in tries:
        found = {}
        for row in _pages(client, wanted, url):
            series, kind = _series(url, row)
            fits = fnmatchcase(series.patient, patient or "*") and modality in ("", kind)
            if series.series and fits:
                found[series.series] = series
        if found:
            return found
    return {}


def _client(url: str) -> Any:
    from dicomweb_client.api import DICOMwebClient

    token = os.environ.get(TOKEN, "")
    headers = {}
    if ":" in token:
        import base64

        headers["Authorization"] = "Basic " + base64.b64encode(token.encode()).decode()
    elif token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        client = DICOMwebClient(url=url.rstrip("/"), headers=headers)
    except ValueError as error:
        raise DiffAugError(f"{url} is no address of a DICOMweb service ({error}): correct it") from None
    client.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=100)
    return client


def _pages(client: Any, wanted: Mapping[str, str], url: str) -> Iterator[Mapping[str, Any]]:
    fields = ["PatientID", "Modality", "StudyInstanceUID", "SeriesInstanceUID", "NumberOfSeriesRelatedInstances"]
    offset = 0
    while True:
        try:
            rows = client.search_for_series(search_filters=dict(wanted), fields=fields, limit=PAGE, offset=offset)
        except OSError as error:
            raise DiffAugError(f"{url}: {_why(error)}") from None
        yield from rows
        if len(rows) < PAGE:
            return
        offset += len(rows)


def _series(url: str, row: Mapping[str, Any]) -> tuple[WebSeries, str]:
    """A series and its modality."""

    def value(tag: str) -> str:
        values = (row.get(tag) or {}).get("Value") or [""]
        return str(values[0])

    study = value("0020000D")
    patient = value("00100020").strip() or f"study {study}"
    series = WebSeries(url, patient, study, value("0020000E"), int(value("00201209") or 0))
    return series, value("00080060").upper()


def _fetched(series: WebSeries, folder: Path) -> Iterator[Path]:
    """The instances as files, one after the other, so that memory holds one."""
    client = _client(series.url)
    instances = client.iter_series(series.study, series.series, media_types=(("application/dicom", "*"),))
    for i, data in enumerate(instances):
        path = folder / f"{i:05d}.dcm"
        data.save_as(path, enforce_file_format=True)
        yield path


def _why(error: OSError) -> str:
    """What a failed request means for the user."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the server refuses ({status}): put a token, or user:password, into the variable {TOKEN}"
    if status is not None:
        return f"the server answers {status}: check the address, which ends in something like /dicom-web"
    return f"the server cannot be reached ({type(error).__name__}): check address and network, and run this again"
