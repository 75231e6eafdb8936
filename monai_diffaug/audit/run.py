"""The whole audit from files: datalists or folders in, sections with verdicts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backbones import hub
from ..backbones.extractors import Extractor
from ..backbones.extractors import extractor as network
from ..backbones.parts import verifier_of
from ..backbones.verifier import Verifier
from ..evaluation.images import Pictures, pictures
from ..types import Backbone, Contract, DiffAugError
from .attributes import Values, groups_of
from .audit import Asked, Audit, Progress, Sets, apart, audited, quiet
from .fairness import fairness
from .findings import Section
from .reading import at_contract, contract_of_verifier, named, values_of

__all__ = ["EXTRACTOR", "Options", "Read", "audit", "verifier_from"]

USUAL_SIZE = 64
EXTRACTOR = "mednist"
"""Whose features copies are looked for in; with them recall and false alarms were measured."""


@dataclass(frozen=True)
class Options:
    """What an audit looks at beside copies, and how much work it may be.

    ``model``, ``reference`` and ``verifier`` are names or folders, or what was loaded from them; ``attributes`` fields
    of the datalists; ``extract`` samples over training images, ``samples`` in all, ``attacked`` images of either side
    of the membership attack; ``size`` the side that images are fitted to (the model's, else 64).
    """

    model: str | Path | Backbone | None = None
    reference: str | Path | Backbone | None = None
    verifier: str | Path | Verifier | None = None
    attributes: tuple[str, ...] = ()
    extract: float = 10
    samples: int = 500
    attacked: int = 300
    extractor: Any = EXTRACTOR
    rate: float = 0.02
    size: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            DiffAugError: saying what to give.
        """
        if self.reference is not None and self.model is None:
            raise DiffAugError("a reference is what a model is compared with: give that as --model, too")
        if self.extract <= 0 or self.samples < 1 or self.attacked < 1:
            raise DiffAugError("samples and attacked images are counts: give more than 0")
        if self.size is not None and self.size < 16:
            raise DiffAugError(f"at {self.size} voxels a side all images are alike: give a size of 16 or more")


@dataclass(frozen=True)
class Read:
    """Training, unseen and synthetic images as they were read."""

    train: Pictures
    unseen: Pictures
    made: Pictures

    @property
    def skipped(self) -> tuple[str, ...]:
        """A line for each file that could not be read."""
        return (*self.train.skipped, *self.unseen.skipped, *self.made.skipped)

    def images(self) -> dict[str, Tensor]:
        """Path -> image (C, *S), of training and synthetic images."""
        return {str(p): x for d in (self.train, self.made) for p, x in zip(d.paths, d.images, strict=True)}

    def sets(self, contract: Contract | None = None) -> Sets:
        """As an audit takes them; fitted to a contract if one is given."""
        three = [
            named(d) if contract is None else at_contract(d, contract) for d in (self.train, self.unseen, self.made)
        ]
        return Sets(three[0], three[1], three[2], (self.train.kinds, self.unseen.kinds))


def verifier_from(what: str | Path) -> Verifier:
    """A verifier from a bundle, a backbone that has one, or its own folder.

    Raises:
        DiffAugError: there is none.
    """
    place = Path(what).expanduser()
    for folder in (place, place / "verifier", place / "models" / "verifier"):
        if (folder / "verifier.json").is_file():
            return verifier_of(folder)
    found: Verifier | None = hub.load(str(what)).verifier
    if found is None:
        raise DiffAugError(f"{what} has no verifier of patients: give a bundle that has one (anonymous_chest_xray)")
    return found


def _loaded(what: Any) -> Any:
    return hub.load(what) if isinstance(what, str | Path) else what


def audit(
    train: str | Path,
    synthetic: str | Path,
    unseen: str | Path,
    options: Options | None = None,
    progress: Progress = quiet,
    say: Callable[[str], None] | None = None,
) -> tuple[Audit, Read]:
    """Audit synthetic images, and the model that made them.

    Args:
        train: datalist or folder of the images that the generator was trained on.
        synthetic: of synthetic images.
        unseen: of real images of other patients.
        options: what else to look at.
        progress: ``(what, how many) -> advance``.
        say: called with one line for each file that could not be read.

    Raises:
        DiffAugError: anything that the user can mend.
    """
    ask = options or Options()
    ask.check()
    model, reference = _loaded(ask.model), _loaded(ask.reference)
    contract = None if model is None else model.contract
    side = ask.size or (USUAL_SIZE if contract is None else contract.size[0])
    dims = None if contract is None else contract.spatial_dims
    read = Read(*(pictures(source, side, dims) for source in (train, unseen, synthetic)))
    for line in read.skipped:
        if say is not None:
            say(line)
    sets = read.sets(contract if ask.size is None else None)
    apart(sets.train, sets.unseen)
    found = ask.extractor if isinstance(ask.extractor, Extractor) else network(ask.extractor)
    embed = found if found.dims == read.train.images.ndim - 2 else None
    verifier = verifier_from(ask.verifier) if isinstance(ask.verifier, str | Path) else ask.verifier
    if verifier is None and model is not None:
        verifier = model.verifier
    asked = Asked(
        model=model,
        model_sets=None if model is None else sets if ask.size is None else read.sets(contract),
        reference=reference,
        reference_sets=None if reference is None else read.sets(reference.contract),
        verifier=verifier,
        verifier_sets=None if verifier is None else read.sets(contract_of_verifier(verifier, read.train.images[0])),
        attributes=_attributes(read, ask.attributes),
        fairness=lambda copies: _fair(read, ask.attributes, found, copies),
        extract=ask.extract,
        most_samples=ask.samples,
        most_attacked=ask.attacked,
        seed=ask.seed,
    )
    settings = {
        "images": len(read.made),
        "training_images": len(read.train),
        "unseen_images": len(read.unseen),
        "extractor": found.name,
        "model": None if model is None else {"name": model.name, "digest": model.digest},
        "reference": None if reference is None else {"name": reference.name, "digest": reference.digest},
        "skipped": list(read.skipped),
        "seed": ask.seed,
    }
    return audited(sets, embed, ask.rate, asked, progress, settings), read


def _attributes(read: Read, names: Sequence[str]) -> Mapping[str, tuple[Values, Values, Values]]:
    out = {}
    for name in names:
        three = groups_of(*(values_of(d, name) for d in (read.train, read.unseen, read.made)))
        if not any(three[0]):
            has = ", ".join(sorted({k for f in read.train.fields for k in f} - {"provenance"})) or "none"
            raise DiffAugError(f"no training image says its {name!r}: give a datalist that does (its fields: {has})")
        out[name] = (three[0], three[1], three[2])
    return out


def _fair(read: Read, names: Sequence[str], found: Extractor, copies: Section) -> Section:
    repeated = [f["nearest"] for f in copies.more.get("found", ()) if f["copy"]]
    paths = [str(p) for p in read.train.paths]
    groups = {n: dict(zip(paths, values_of(read.train, n), strict=True)) for n in names}
    return fairness(read.unseen, read.made, names, found, repeated, groups)
