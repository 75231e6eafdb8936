"""Which group an image is of, by what its datalist says: sex, age, site, class, or crossings of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..types import DiffAugError
from .images import Pictures

__all__ = ["AGES", "UNKNOWN", "group_of", "labels_of"]

AGES = (18, 40, 60, 80)
"""Where one age group ends and the next begins, in years."""

UNKNOWN = "unknown"
MOST = 12  # values of an attribute that are groups and not a measurement
SEXES = {"m": "male", "male": "male", "f": "female", "female": "female", "w": "female"}


def group_of(fields: Mapping[str, Any], kind: str, attribute: str) -> str:
    """The group that an image is of, by its datalist's fields: ``age`` in years is binned, ``class`` is the class.

    Several attributes joined by ``+`` make groups of their crossing (``"sex+age"``).
    """
    return " ".join(_single(fields, kind, name) for name in attribute.split("+"))


def _single(fields: Mapping[str, Any], kind: str, name: str) -> str:
    value = fields.get(name)
    if value is None and name in ("class", "kind", "label"):
        value = kind
    if value is None or (isinstance(value, float) and math.isnan(value)) or str(value).strip() == "":
        return UNKNOWN
    text = str(value).strip()
    if name == "age":
        return _aged(text)
    return SEXES.get(text.lower(), text) if name == "sex" else text


def _aged(text: str) -> str:
    """61, 61.0 or DICOM's 061Y and 018M."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)\w*", text.upper())
    if found is None:
        return text  # already a group, such as 60-79
    years = float(found[1]) * {"": 1, "Y": 1, "M": 1 / 12, "W": 7 / 365, "D": 1 / 365}[found[2]]
    edges = [0, *AGES]
    at = sum(years >= e for e in edges) - 1
    return f"{edges[at]}-{edges[at + 1] - 1}" if at + 1 < len(edges) else f"{edges[at]}+"


def labels_of(pictures: Pictures, attribute: str, what: str) -> list[str]:
    """The group of each image; ``what`` (``"real"``) names the images in errors.

    Raises:
        DiffAugError: no image says the attribute, or it has too many values.
    """
    fields = pictures.fields or ({},) * len(pictures)
    found = [group_of(f, k, attribute) for f, k in zip(fields, pictures.kinds, strict=True)]
    unknown = " ".join([UNKNOWN] * (attribute.count("+") + 1))
    known = {g for g in found if g != unknown}
    if not known:
        has = ", ".join(sorted({k for f in fields for k in f} - {"provenance", "source", "synthetic"})) or "none"
        raise DiffAugError(f"no {what} image says its {attribute!r}: give a datalist that does (its fields: {has})")
    if len(known) > MOST:
        raise DiffAugError(f"{attribute!r} has {len(known)} values in {what} images, too many for groups: bin it first")
    return found
