"""Sixty soft blobs of twenty patients, round or long, and a small backbone to fine-tune on them."""

import json

import numpy as np
from PIL import Image

from monai_diffaug.backbones import hub, tiny


def images(folder, n=60, each=3, classes=True, **fields):
    """PNGs with masks and a datalist; returns the datalist's path."""
    random, items = np.random.default_rng(0), []
    y, x = np.mgrid[:24, :24]
    for i in range(n):
        kind = ("round", "long")[i % 2]
        wide = 40 if kind == "round" else 200
        blob = np.exp(-((x - random.uniform(9, 15)) ** 2) / wide - (y - random.uniform(9, 15)) ** 2 / 40)
        Image.fromarray((60 + 120 * blob).astype("uint8")).save(folder / f"{i:02}.png")
        Image.fromarray(((blob > 0.5) * 255).astype("uint8")).save(folder / f"{i:02}_mask.png")
        item = {"image": f"{i:02}.png", "mask": f"{i:02}_mask.png", "patient": f"p{i // each:02}"}
        items.append(item | ({"class": kind} if classes else {}) | fields)
    return listed(folder, items)


def listed(folder, items, name="datalist.json", licence="CC0"):
    path = folder / name
    data = items if isinstance(items, dict) else {"training": items}
    path.write_text(json.dumps(data | ({"licence": licence} if licence else {})))
    return path


def entries(path):
    return json.loads(path.read_text())["training"]


def base(folder, kind="class_mask", **how):
    """A saved tiny backbone."""
    return hub.save(tiny.tiny(kind, **how), folder / f"{kind}_base")
