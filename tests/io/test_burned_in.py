"""Writing in pictures: planted words are found, real images without words are left in peace."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import monai_diffaug
from monai_diffaug.io.burned_in import STRICT, writing_in

DATA = Path(monai_diffaug.__file__).parent / "data"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
WORDS = ["FEATHERSTONE^W", "1943-08-17", "ID 4711-88", "AP ERECT PORT", "liegend 12:40", "St. Elsewhere"]


def film(i: int, size: int = 640) -> np.ndarray:
    """A real chest film or slice without writing, enlarged."""
    files = sorted((DATA / "mednist").rglob("*.png")) + sorted((DATA / "brain_mri" / "images").glob("*.png"))
    return np.asarray(Image.open(files[i % len(files)]).convert("L").resize((size, size), Image.Resampling.BICUBIC))


def planted(
    image: np.ndarray, word: str, size: int, corner: tuple[int, int], font: str = "DejaVuSans.ttf", ink: int = 255
):
    picture = Image.fromarray(image.copy())
    ImageDraw.Draw(picture).text(corner, word, fill=ink, font=ImageFont.truetype(str(FONTS / font), size))
    return np.asarray(picture)


def test_planted_words_are_found_and_where():
    found, total = 0, 0
    for i in range(36):
        corner = [(10, 10), (300, 12), (14, 590)][i % 3]
        font = ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf"][i % 3]
        image = film(i)
        ink = 255 if image[corner[1] : corner[1] + 30, corner[0] : corner[0] + 100].mean() < 128 else 0
        lines = writing_in(planted(image, WORDS[i % len(WORDS)], [12, 18, 26][i // 12], corner, font, ink))
        hits = [w for w in lines if abs(w.box[0] - corner[1]) < 30 and abs(w.box[1] - corner[0]) < 40]
        found, total = found + bool(hits), total + 1
    assert found / total >= 0.9, f"{found} of {total}"


def test_images_without_words_are_left_in_peace():
    alarms = sum(bool(writing_in(film(i))) for i in range(0, 52, 2))
    strict = sum(bool(writing_in(film(i), STRICT)) for i in range(0, 52, 2))
    assert alarms <= 2
    assert strict == 0


def test_large_films_are_looked_at_in_half_or_quarter():
    big = np.kron(film(3), np.ones((4, 4), np.uint8))
    lines = writing_in(planted(big, "FEATHERSTONE WILHELMINA", 70, (60, 40)))
    assert lines
    assert lines[0].box[0] < 140


@pytest.mark.parametrize("image", [np.zeros((64, 64)), np.full((10, 10), 3), np.zeros((64, 64, 3), np.uint8)])
def test_nothing_in_nothing(image):
    assert writing_in(image) == []
