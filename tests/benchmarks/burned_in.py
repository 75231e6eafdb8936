"""How well burned-in writing is found on real radiographs, and the fit of the rule that finds it.

    python -m tests.benchmarks.burned_in --films FOLDER --words LIST [--unsure LIST] [--fit OTHER ...]

FOLDER holds pictures; LIST names those in which a person sees words (comma-separated file names), side markers do not
count; unsure ones are left out. Films are divided in two by their order. With ``--fit`` the rule is fitted anew: words
are planted into films of the first half that have none and into pictures of the other folders, and its numbers printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from monai_diffaug.io.burned_in import RULE, STRICT, USUAL, measured, writing_in

FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf")
WORDS = ("SMITH^JOHN", "1962-03-14", "ID 48213377", "PORT", "AP ERECT", "Mueller", "12.04.2019", "Liegend", "Jane Doe")


def opened(path: Path) -> np.ndarray:
    """A picture, from 0 to 1."""
    gray = np.asarray(Image.open(path)).astype(np.float32)
    gray = gray.max(-1) if gray.ndim == 3 else gray
    return (gray - gray.min()) / max(float(np.ptp(gray)), 1e-6)


def planted(gray: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int, int]] | None:
    """The picture with a word in it, and where; ``None`` if the word does not fit there or would not be seen."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / random.choice(FONTS)
    word, font = str(random.choice(WORDS)), ImageFont.truetype(str(path), int(random.integers(8, 30)))
    left, top, right, bottom = (int(v) for v in font.getbbox(word))
    rows, columns = gray.shape
    if right >= columns or bottom >= rows:
        return None
    x, y = int(random.integers(0, columns - right)), int(random.integers(0, rows - bottom))
    picture = Image.new("L", (columns, rows), 0)
    ImageDraw.Draw(picture).text((x, y), word, fill=255, font=font)
    ink, level = np.asarray(picture) / 255, float(random.choice([1.0, 1.0, 1.0, 0.8, 0.0]))
    box = (y + top, x + left, y + bottom, x + right)
    if abs(level - float(np.median(gray[box[0] : box[2], box[1] : box[3]]))) < 0.25:
        return None
    return gray * (1 - ink) + level * ink, box


def regions(files: list[Path], times: int, seed: int = 0) -> Iterator[tuple[bool, dict[str, float]]]:
    """Measures of all regions of pictures without words, and of the region of each planted word."""
    random = np.random.default_rng(seed)
    for path in files:
        gray = opened(path)
        yield from ((False, m) for _, m in measured(gray))
        for _ in range(times):
            made = planted(gray, random)
            for box, measures in measured(made[0]) if made else ():
                a, b, c, d = made[1]  # type: ignore[index]
                if a <= (box[0] + box[2]) / 2 <= c and b <= (box[1] + box[3]) / 2 <= d:
                    yield True, measures


def fit(films: list[Path], others: list[Path]) -> None:
    """Print the rule's numbers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rows = [*regions(films, 3), *regions(others, 1, 1)]
    x, y = np.array([[m[name] for name in RULE] for _, m in rows]), np.array([word for word, _ in rows])
    scale = StandardScaler().fit(x)
    rule = LogisticRegression(C=1, class_weight="balanced", max_iter=2000).fit(scale.transform(x), y)
    for name, mean, spread, weight in zip(RULE, scale.mean_, scale.scale_, rule.coef_[0]):
        print(f'    "{name}": ({mean:.3f}, {spread:.3f}, {weight:.3f}),')
    print(f"BIAS = {rule.intercept_[0]:.3f}  # {y.sum()} regions with words, {(~y).sum()} without")


def main() -> None:
    """Print recall and false alarms."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--films", type=Path, required=True)
    arguments.add_argument("--words", default="")
    arguments.add_argument("--unsure", default="")
    arguments.add_argument("--fit", type=Path, nargs="*")
    given = arguments.parse_args()
    files = sorted(p for p in given.films.iterdir() if p.suffix.lower() in (".png", ".jpg"))
    words, unsure = (set(t.split(",")) for t in (given.words, given.unsure))
    clean = [f for f in files if f.name not in words | unsure]
    if given.fit is not None:
        others = [f for folder in given.fit for f in sorted(folder.glob("*.png"))[::20]]
        fit([f for f in files[::2] if f in clean], others)
    random, places = np.random.default_rng(7), ((USUAL, "usual"), (STRICT, "strict"))
    for limit, name in places:
        for part, some in (("all", files), ("second half", files[1::2])):
            found = {f.name for f in some if writing_in(opened(f), limit)}
            seen, none = {f.name for f in some} & words, {f.name for f in some if f in clean}
            print(f"{name} limit, {part}: {len(found & seen)} of {len(seen)} films with words found,", end=" ")
            print(f"{len(found & none)} of {len(none)} without words flagged")
        tried = [p for p in (planted(opened(f), random) for f in clean if not writing_in(opened(f), limit)) if p]
        hits = sum(bool(writing_in(p, limit)) for p, _ in tried)
        print(f"{name} limit: {hits} of {len(tried)} planted words found")


if __name__ == "__main__":
    main()
