"""Numbers and names as a clinician reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "BAD", "CAUTION", "GOOD", "UNKNOWN", "Verdict", "brief", "count", "interval", "name_of", "number", "percent",
    "plain", "section_of", "wraps",
]  # fmt: skip

GOOD, CAUTION, BAD, UNKNOWN = "good", "caution", "bad", "unknown"


@dataclass(frozen=True)
class Verdict:
    """A mark (told by shape and word, not by color alone), the word beside it, and a sentence."""

    mark: str
    word: str
    says: str = ""


# name of a score -> what it is called, and what it says
SCORES = {
    "fid": ("Fréchet distance (FID)", "how far apart the two sets lie, seen by the network"),
    "kid": ("Kernel distance (KID)", "the same without FID's bias at small numbers"),
    "precision": ("Precision", "share of synthetic images that lie among real ones"),
    "recall": ("Recall", "share of real images that lie among synthetic ones"),
    "density": ("Density", "how densely real images surround the synthetic ones"),
    "coverage": ("Coverage", "share of real images that have a synthetic neighbor"),
    "vendi": ("Vendi score", "number of clearly different images"),
    "inception_score": ("Inception score", "variety of classes, each clearly recognized"),
    "perceptual_diversity": ("Perceptual diversity", "mean difference between two images, seen by the network"),
    "ssim_pairs": ("Likeness of pairs (SSIM)", "how alike two images of the set are"),
    "ms_ssim_pairs": ("Likeness of pairs (MS-SSIM)", "the same at several scales"),
    "ssim_to_source": ("Likeness to the source (SSIM)", "how alike an image and the real one that it was made of are"),
    "frd": ("Radiomics distance (FRD)", "how far apart texture and gray values lie"),
    "anatomy_body": ("Anatomy: size of the body", "distance in standard deviations"),
    "anatomy_dark_inside": ("Anatomy: dark inside", "distance in standard deviations"),
    "anatomy_symmetry": ("Anatomy: symmetry", "distance in standard deviations"),
    "anatomy_lesion": ("Anatomy: lesion size", "distance in standard deviations"),
    "share": ("Share of the images", "what part of all images the group is"),
    "share_corrected": ("Share, corrected", "the same, as a classifier that knows its errors sees it"),
    "discrepancy": ("Discrepancy of the shares", "how far the shares of all groups lie from those among real images"),
    "told_apart": ("Told apart", "how well a classifier tells the groups of synthetic images; 0.5 is chance"),
    "auroc": ("AUROC", "area under the receiver operating characteristic"),
    "auprc": ("AUPRC", "area under the precision-recall curve"),
    "f1": ("F1", "harmonic mean of precision and recall"),
    "iou": ("IoU", "overlap over union"),
    "map": ("mAP", "mean average precision of boxes"),
}  # fmt: skip

_SECTIONS = {
    "copies": ("Copies", "Is a synthetic image a copy of a training image, also shifted, mirrored or brightened?"),
    "reidentification": ("Re-identification", "Is a patient recognized in a synthetic image?"),
    "membership": ("Membership", "Can it be told whether a patient's images were used for training?"),
    "extraction": ("Extraction", "Do training images come out when very many images are made?"),
    "attributes": ("Attributes", "Does an image give away sex, age or site of the patient it was made of?"),
    "fairness": ("Fairness", "Are groups of patients served equally well?"),
}


def name_of(key: str) -> tuple[str, str]:
    """What a score is called, and what it says."""
    base, planes = key.removesuffix("_2.5d"), key.endswith("_2.5d")
    called, says = SCORES.get(base, (plain(base), ""))
    return (f"{called}, slices" if planes else called), (f"{says}; slices of three planes" if planes else says)


def section_of(key: str) -> tuple[str, str]:
    """What a section of the audit is called, and its question."""
    return _SECTIONS.get(key, (plain(key), ""))


def plain(key: Any) -> str:
    """A key as words: ``anatomy_lung_field`` is *Anatomy lung field*."""
    text = str(key).replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def number(value: Any, digits: int = 3) -> str:
    """Three figures that count, a true minus sign, a dash for what is no number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        places = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
        least = digits if abs(value) >= 1e-2 or not value else digits + 2
        return f"{value:,.{min(places, least)}f}".replace("-", "−")
    return f"{value:.{digits - 1}e}".replace("-", "−")


def brief(value: Any) -> str:
    """The same without the zeros at its end: for settings and the numbers of an axis."""
    text = number(value)
    if isinstance(value, int | float) and "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return text


def interval(ends: Any, digits: int = 3) -> str:
    """``0.12 to 0.34``; nothing where there is none."""
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        return ""
    return f"{number(ends[0], digits)} to {number(ends[1], digits)}"


def percent(share: Any) -> str:
    """A share in percent, whole where that will do."""
    if not isinstance(share, int | float) or not math.isfinite(share):
        return "–"
    hundred = 100 * share
    return f"{hundred:.0f} %" if hundred in (0, 100) or 1 <= hundred <= 99 else f"{hundred:.1f} %"


def count(n: int, one: str, many: str = "") -> str:
    """``1 image``, ``3 images``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def wraps(words: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""
