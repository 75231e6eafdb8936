"""A toy world for studies: noise with a bright patch on the left or without; a generator that knows it."""

import json

import numpy as np
from PIL import Image

SIZE = 16


def picture(kind, rng, strength=2.6):
    """(16, 16) of 0..255 and the mask of the patch. Others lie on the right of either kind: few images mislead."""
    x = rng.normal(0, 0.7, (SIZE, SIZE))
    mask = np.zeros((SIZE, SIZE))
    top, left = rng.integers(1, 9), rng.integers(0, 3)
    if kind == "with":
        mask[top : top + 6, left : left + 5] = 1
    if rng.random() < 0.5:
        top, left = rng.integers(1, 9), rng.integers(9, 12)
        x[top : top + 6, left : left + 5] += strength
    x += strength * mask
    return np.clip(110 + 35 * x, 0, 255).astype(np.uint8), (mask * 255).astype(np.uint8)


def save(folder, name, kind, rng, **more):
    folder.mkdir(parents=True, exist_ok=True)
    image, mask = picture(kind, rng)
    Image.fromarray(image).save(folder / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{name}_mask.png")
    return {"image": f"{name}.png", "label": f"{name}_mask.png", "class": kind, **more}


def data(folder, patients=16, tests=24, seed=0):
    """A datalist with sections training, validation and test; every patient has images of both kinds."""
    rng = np.random.default_rng(seed)
    sections = {"training": patients, "validation": 12, "test": tests}
    found = {}
    for section, n in sections.items():
        found[section] = [
            save(folder, f"{section}{p:02d}_{kind}", kind, rng, patient=f"{section}{p:02d}", sex="fm"[p % 2])
            for p in range(n)
            for kind in ("with", "without")
        ]
    path = folder / "scans.json"
    path.write_text(json.dumps(found))
    return path


def produce(order):
    """More of the same world: what a perfect generator would make. Counts how often it was asked."""
    calls.append(order.out.name)
    rng = np.random.default_rng(99)
    if order.count:
        rows = [save(order.out, f"{k}{i}", k, rng) for k, n in order.count.items() for i in range(n)]
    else:
        real = json.loads(order.source.read_text())["training"]
        rows = [
            save(order.out, f"{i}_{c}", r["class"], rng, patient=r["patient"])
            for i, r in enumerate(real)
            for c in range(order.copies)
        ]
    for row in rows:
        row["provenance"] = {"backbone_digest": "d1"}
    (order.out / "datalist.json").write_text(json.dumps({"training": rows}))
    return order.out / "datalist.json"


calls = []

MADE = {"name": "made", "kind": "diffusion", "method": "generate"}
EDITED = {"name": "made", "kind": "diffusion", "method": "sdedit"}


def study(path, arms=(), **more):
    """What a study's file holds."""
    return {
        "name": "toy",
        "task": "classification",
        "data": {"datalist": str(path)},
        "classes": ["without", "with"],
        "size": SIZE,
        "patients": [3],
        "seeds": [0, 1],
        "training": {"steps": 20, "batch": 8, "lr": 0.003, "channels": [8, 8, 8, 8], "precision": "float32"},
        "generator": {"backbone": "toy", "patients_seen": 16},
        "draws": 400,
        "arms": [{"name": "real", "kind": "real"}, {"name": "classical", "kind": "classical"}, *arms],
        **more,
    }
