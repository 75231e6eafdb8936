"""Which part of a text-to-image model must learn a new kind of image, and what each can do alone.

After Chambon et al. 2022 (arXiv:2210.04133): the autoencoder as it is, the text encoder as it is and trained, a new
word alone (textual inversion), the network on a handful of images (DreamBooth), and the network with its text encoder.
Every variant is told one of two findings, and a classifier of real images says which of the two it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..backbones import growing
from ..backbones.judge import Judge
from ..domains.chest_xray_figures import agreement, drawn, pictures, round_trip, separated
from ..primitives import concepts
from ..types import Backbone, Concept, DiffAugError, NoiseSource
from .prompted import finetune_on_prompts

__all__ = ["changed_rows", "study", "told_apart"]

SENTENCES = ("{}", "an image of {}", "a scan of {}", "a photo of {}", "the {}", "a large {}", "a small {}", "a dark {}")


def told_apart(backbone: Backbone, prompts: Sequence[str], sentences: Sequence[str] = SENTENCES) -> float:
    """Silhouette of two prompts, each in several sentences, as the text encoder sees them.

    A sentence is the mean of its tokens (what the network attends to), start and end and padding left out.
    """
    conditioner: Any = backbone.conditioner
    rows, classes = list[Tensor](), list[int]()
    with torch.no_grad():
        for k, prompt in enumerate(prompts):
            for sentence in sentences:
                text = sentence.format(prompt.removeprefix("a "))
                hidden = conditioner.encode_ids(conditioner.tokenize([text]))[0]
                places = [p for _, at in conditioner.words(text) for p in at]
                rows.append(hidden[places].mean(0))
                classes.append(k)
    return separated(torch.stack(rows), torch.tensor(classes))


def changed_rows(before: Backbone, after: Backbone) -> dict[str, int]:
    """How many rows of the table of words ``after`` has besides those of ``before``, and how many weights differ.

    Weights are compared bit by bit, in every part.
    """
    learned: Mapping[str, Tensor] = getattr(after.conditioner, "learned", {})
    known: Mapping[str, Tensor] = getattr(before.conditioner, "learned", {})
    more = sum(len(rows) for word, rows in learned.items() if word not in known)
    differing = 0
    for name, module in before.modules().items():
        other = after.modules()[name].state_dict()
        differing += sum(int((v != other[k]).sum()) for k, v in module.state_dict().items())
    return {"new_rows": more, "changed_weights": differing}


def study(
    backbone: Backbone,
    judge: Judge,
    films: Mapping[str, Tensor],
    prompts: Mapping[str, str],
    folder: str | Path,
    *,
    held_out: Tensor | None = None,
    shots: int = 16,
    inversion_steps: int = 400,
    dreambooth_steps: int = 400,
    steps: int = 600,
    images: int = 32,
    seeds: Sequence[int] = (1, 2),
    scale: float = 3.0,
    sampling_steps: int = 20,
    prior: int = 32,
    known: str = "chest x-ray",
) -> dict[str, Any]:
    """Run the study and return its figures; pictures of every variant go into ``folder``.

    Args:
        backbone: the model to be adapted; stays as it is.
        judge: a classifier of real images, whose labels are those of ``films``.
        films: for each of two labels its training images (N, 1, *S) in the value range.
        prompts: for each label what to call it.
        folder: of the runs and pictures.
        held_out: images (M, 1, *S) for the round trip; the training images unless given.
        shots: images of each label that the few-shot variants see.
        inversion_steps: of textual inversion.
        dreambooth_steps: of DreamBooth.
        steps: of fine-tuning network and text encoder on all images.
        images: made of each prompt and seed.
        seeds: of the samples.
        scale: of guidance.
        sampling_steps: network calls for an image.
        prior: images of the class that DreamBooth keeps.
        known: what both are, in words that the backbone knows; new words start from it.

    Raises:
        DiffAugError: there are not two labels, or the judge does not know them.
    """
    labels = tuple(films)
    if len(labels) != 2 or any(x not in judge.labels for x in labels):
        raise DiffAugError(
            f"the study compares two findings that the judge knows: give two of {', '.join(judge.labels)}"
        )
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    start = growing.with_prompts(backbone, prompts.values())
    every = torch.cat(list(films.values()))
    shown: dict[str, Tensor] = {}

    def asked(name: str, makers: Sequence[tuple[Backbone, str]]) -> dict[str, Any]:
        return _asked(name, makers, judge, labels, shown, images, seeds, scale, sampling_steps)

    few = [films[x][:: max(1, len(films[x]) // shots)][:shots] for x in labels]
    out: dict[str, Any] = {
        "autoencoder": round_trip(start.autoencoder, every if held_out is None else held_out),
        "text_encoder": {"before": told_apart(start, list(prompts.values()))},
        "accuracy": {"zero-shot": asked("zero-shot", [(start, prompts[x]) for x in labels])},
    }
    inverted, booth = [], []
    for k, label in enumerate(labels):
        word = f"<{label.split()[0]}>"
        concept = _learned("textual_inversion", start, few[k], seed=k, word=word, initial=known, steps=inversion_steps)
        taught = _put(start, concept)
        out.setdefault("textual_inversion", {})[label] = changed_rows(start, taught)
        inverted.append((taught, f"a {word}"))
        concept = _learned(
            "dreambooth",
            start,
            few[k],
            seed=k,
            word=word,
            class_prompt=f"a {known}",
            prior=prior,
            steps=dreambooth_steps,
        )
        booth.append((_put(start, concept), f"a {word} {known}"))
    out["accuracy"]["textual inversion"] = asked("textual inversion", inverted)
    out["accuracy"]["DreamBooth"] = asked("DreamBooth", booth)
    pairs = [{"image": x, "prompt": prompts[label]} for label in labels for x in films[label]]
    made = finetune_on_prompts(start, pairs, place / "run", steps=steps, batch=16, rate=3e-4)
    out["text_encoder"]["after"] = told_apart(made.backbone, list(prompts.values()))
    out["accuracy"]["fine-tuned"] = asked("fine-tuned", [(made.backbone, prompts[x]) for x in labels])
    pictures(shown, place / "components.png", columns=8)
    return out


def _asked(
    name: str,
    makers: Sequence[tuple[Backbone, str]],
    judge: Judge,
    labels: Sequence[str],
    shown: dict[str, Tensor],
    images: int,
    seeds: Sequence[int],
    scale: float,
    steps: int,
) -> dict[str, Any]:
    """How often the judge sees what each of two backbones was told."""
    places = [judge.labels.index(x) for x in labels]
    told, said, by_seed = list[int](), list[Tensor](), dict[str, float]()
    for seed in seeds:
        right = list[Tensor]()
        for k, (model, prompt) in enumerate(makers):
            made = drawn(model, [prompt] * images, seed=seed * 10 + k, scale=scale, steps=steps)
            shown.setdefault(f"{name}: {labels[k]} ({prompt})", made)
            with torch.no_grad():
                found = judge.logits(made.mean(1, keepdim=True))[:, places].argmax(1)
            told += [k] * images
            said.append(found)
            right.append((found == k).float())
        by_seed[str(seed)] = float(torch.cat(right).mean())
    return {**agreement(torch.tensor(told), torch.cat(said)), "by_seed": by_seed}


def _learned(method: str, backbone: Backbone, images: Tensor, seed: int, **parameters: Any) -> Concept:
    call: Callable[..., Any] = registry.call
    found: Concept = call(method, backbone, images, generator=NoiseSource([seed]), **parameters)
    return found


def _put(backbone: Backbone, concept: Concept) -> Backbone:
    with concepts.applied(backbone, concept) as taught:
        return replace(taught)
