"""Names for patients, files and UIDs that say nothing, and are the same whenever the same secret is used.

A pseudonym is a keyed hash (HMAC-SHA256). Who has the secret can find out again which patient it is, by hashing the
hospital's identifiers; who has the output only can not, whatever identifiers are tried.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ..types import DiffAugError

__all__ = ["Pseudonyms", "open_secret", "usual_secret"]

BYTES = 32


@dataclass(frozen=True)
class Pseudonyms:
    """Keyed hashes of what identifies.

    Args:
        secret: at least 16 random bytes.
    """

    secret: bytes

    def _hash(self, kind: str, text: str) -> bytes:
        return hmac.new(self.secret, f"{kind}\0{text}".encode(), hashlib.sha256).digest()

    def patient(self, identity: str) -> str:
        """A patient's name: ``P`` and twelve hexadecimal digits, fit for any file name and for BIDS."""
        return "P" + self._hash("patient", identity.strip()).hex()[:12].upper()

    def uid(self, uid: str) -> str:
        """A DICOM UID (2.25 and a UUID of version 8, as the standard wants UIDs that are derived)."""
        number = int.from_bytes(self._hash("uid", str(uid).strip())[:16], "big")
        number = (number & ~(0xF << 76)) | (8 << 76)
        number = (number & ~(0x3 << 62)) | (2 << 62)
        return f"2.25.{number}"

    def token(self, text: str) -> str:
        """Eight hexadecimal digits for a file or series."""
        return self._hash("token", text).hex()[:8]

    def days(self, patient: str) -> int:
        """By how many days a patient's dates are moved: one to ten years back, the same for all of one patient."""
        return -(365 + int.from_bytes(self._hash("days", patient.strip())[:4], "big") % 3286)

    @property
    def fingerprint(self) -> str:
        """Tells secrets apart without giving them away."""
        return self._hash("fingerprint", "").hex()[:16]


def usual_secret() -> Path:
    """Where the secret lies unless another file is named: among the user's settings, not beside any data."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "monai-diffaug" / "import.secret"


def open_secret(file: str | Path | None, out: str | Path) -> Pseudonyms:
    """Read a secret, or make it if the file is not there yet (readable by its owner only).

    Args:
        file: where it is kept; :func:`usual_secret` unless given.
        out: the output folder, in which it must not lie.

    Raises:
        DiffAugError: it lies in the output folder, is no secret, or cannot be read or made.
    """
    path = (Path(file) if file is not None else usual_secret()).expanduser()
    if path.resolve().is_relative_to(Path(out).expanduser().resolve()):
        raise DiffAugError(f"the secret {path} would be handed on with the data: keep it outside of {out}")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as new:
                new.write(secrets.token_hex(BYTES) + "\n")
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise DiffAugError(f"the secret {path} cannot be used ({why}): name another with --keep-secret") from None
    if len(text) < 32:
        raise DiffAugError(f"the secret {path} is shorter than 32 characters: name another with --keep-secret")
    return Pseudonyms(text.encode())
