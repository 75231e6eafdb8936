"""A real archive for tests: Orthanc from Debian, on loopback, with ports and a storage folder of its own."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

PLUGINS = [Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc/plugins")]
REQUIRED = bool(os.environ.get("DIFFAUG_REQUIRE_PACS"))


def program(*names):
    """The first of the programs that is installed; where tests must not be skipped, none is an error."""
    for name in names:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if found:
            return found
    return missing(f"{names[0]} is not installed (Debian: apt-get install orthanc orthanc-dicomweb dicom3tools)")


def missing(what):
    if REQUIRED:
        pytest.fail(what)
    pytest.skip(what)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass
class Archive:
    """A running Orthanc."""

    title: str
    dicom: int
    http: int
    mover: int
    process: subprocess.Popen

    @property
    def node(self):
        return f"{self.title}@127.0.0.1:{self.dicom}"

    @property
    def web(self):
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def rest(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            return json.load(answer)

    def ready(self):
        """Both services answer: a port that is open may still reset the first association."""
        try:
            socket.create_connection(("127.0.0.1", self.http), 1).close()
        except OSError:
            return False
        entity = AE(ae_title="READER")
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", self.dicom, ae_title=self.title)
        if not association.is_established:
            return False
        echoed = association.send_c_echo()
        association.release()
        return bool(echoed)

    def clear(self):
        for patient in self.rest("/patients"):
            request = urllib.request.Request(f"http://127.0.0.1:{self.http}/patients/{patient}", method="DELETE")
            urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def running(folder, *, dicom=None, http=None, **settings):
    """Start Orthanc, wait until it answers, stop it at the end."""
    orthanc = program("Orthanc", "orthanc")
    plugin = next((p for d in PLUGINS for p in d.glob("libOrthancDicomWeb.so*")), None)
    if plugin is None:
        missing("Orthanc's DICOMweb plug-in is not installed (Debian: apt-get install orthanc-dicomweb)")
    archive = Archive("TESTPACS", dicom or free_port(), http or free_port(), free_port(), None)
    config = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": archive.http,
        "DicomPort": archive.dicom,
        "DicomAet": archive.title,
        "DicomCheckCalledAet": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomModalities": {"us": {"AET": "READER", "Host": "127.0.0.1", "Port": archive.mover, "AllowGet": True}},
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        "SaveJobs": False,
        **settings,
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    log = folder / "orthanc.log"
    with open(log, "wb") as out:
        archive.process = subprocess.Popen([orthanc, str(folder / "orthanc.json")], stdout=out, stderr=out, cwd=folder)
    try:
        end = time.monotonic() + 60
        while not archive.ready():
            if archive.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"Orthanc did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield archive
    finally:
        archive.process.terminate()
        try:
            archive.process.wait(20)
        except subprocess.TimeoutExpired:
            archive.process.kill()
            archive.process.wait()
