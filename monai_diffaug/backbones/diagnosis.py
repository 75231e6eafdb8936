"""What a doctor writes down: faults, remarks and facts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from monai_diffaug.types import DiffAugError

__all__ = ["Diagnosis", "Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing amiss: a ``fault`` keeps it from working, a ``remark`` is worth knowing. ``mend`` is what to write."""

    level: str
    where: str
    what: str
    mend: str = ""


@dataclass
class Diagnosis:
    """All that was found out about one path."""

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """What keeps it from working."""
        return [f for f in self.findings if f.level == "fault"]

    def fault(self, where: Any, what: str, mend: str = "") -> None:
        """Note something that keeps it from working."""
        self.findings.append(Finding("fault", self._short(where), self._short(what), mend))

    def remark(self, where: Any, what: str, mend: str = "") -> None:
        """Note something worth knowing."""
        self.findings.append(Finding("remark", self._short(where), self._short(what), mend))

    def _short(self, text: Any) -> str:
        """Paths below the one looked at, relative to it."""
        return str(text).replace(f"{self.path}/", "") if self.path else str(text)

    @contextmanager
    def noting(self, where: Any) -> Iterator[None]:
        """Turn a :class:`DiffAugError` into a fault: after its last colon stands the remedy."""
        try:
            yield
        except DiffAugError as e:
            text = str(e).removeprefix(f"{where}: ").removeprefix(f"{where} ")
            cut = max(text.rfind(": "), text.rfind("; "))
            self.fault(where, *((text[:cut], text[cut + 2 :]) if cut > 0 else (text, "")))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ok": not self.faults}
