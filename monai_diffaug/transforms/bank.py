"""Augmentation from a pool that `diffaug expand` made beforehand: as cheap as reading a file."""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MapTransform, RandomizableTransform
from torch import Tensor

from ..types import DiffAugError
from .array import META_KEY

__all__ = ["RandBankDrawd"]

Entry = dict[Hashable, Any]


class RandBankDrawd(RandomizableTransform, MapTransform):
    """With probability ``prob``, replace an item (image and labels) by one of the synthetic variants made from it.

    Put it **before** ``LoadImaged``, where the keys still hold file names: it then swaps names, and loading costs what
    it cost before. Or put it after the deterministic part of a chain (behind a ``CacheDataset``'s cache, say), where
    they hold images: it then takes the variants, prepared by ``prepare``, from one memory-mapped file that all workers
    share.

    ``data["diffaug"]`` says what was drawn: the item's record as JSON, empty for a real one.

    Args:
        keys: image and labels, under the names that the datalist has them.
        bank: the folder of a ``diffaug expand`` job, or its ``datalist.json``.
        prob: how often an item that has variants is replaced.
        allow_missing_keys: pass over keys that the data lacks, and never draw variants that lack one of ``keys``.
        prepare: the transforms between file names and where this one stands; ``LoadImaged`` and ``EnsureChannelFirstd``
            unless given. Only needed behind them. Must be deterministic.

    Raises:
        DiffAugError: the pool is not there, is empty, lacks a key or has files missing.

    Example:
        >>> chain = Compose([RandBankDrawd(keys, "expanded/"), LoadImaged(keys), EnsureChannelFirstd(keys)])
    """

    def __init__(
        self,
        keys: KeysCollection,
        bank: str | Path,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
        *,
        prepare: Callable[[Any], Any] | Sequence[Callable[[Any], Any]] | None = None,
    ) -> None:
        if not 0 <= prob <= 1:
            raise DiffAugError(f"prob={prob} is no probability: give a number from 0 to 1")
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        path = Path(bank).expanduser()
        self.datalist = path / "datalist.json" if path.is_dir() else path
        entries, self._of, self._named = _read(self.datalist, self.keys, allow_missing_keys)
        self.entries: list[Entry] = entries
        if prepare is None:
            files = [k for k in self.keys if isinstance(entries[0][k], str) and os.path.isfile(entries[0][k])]
            prepare = [LoadImaged(files), EnsureChannelFirstd(files)]
        self.prepare: Callable[[Any], Any] = prepare if callable(prepare) else Compose(list(prepare))
        self._shelf: _Shelf | None = None
        self._place = 0.0

    def randomize(self, data: Any = None) -> None:
        """Draw whether to replace, and by which variant: a place in [0, 1)."""
        super().randomize(None)
        self._place = float(self.R.rand())

    def fill(self) -> RandBankDrawd:
        """Prepare all variants now, rather than at the first draw. Do it before a loader starts its workers."""
        if self._shelf is None:
            self._shelf = _Shelf(self.entries, self.keys, self.prepare)
        return self

    def variants(self, source: str | Path) -> list[int]:
        """Places in ``entries`` of what was made from a file: by its path, else by its name if only one has it."""
        text = str(source)
        if text not in self._of:
            found = self._of.get(os.path.realpath(text))
            if found is None:
                found = self._named.get(os.path.basename(text), [])
            self._of[text] = found
        return self._of[text]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A new dictionary, with the item's own or a variant's image and labels."""
        d = dict(data)
        self.randomize()
        d.setdefault(META_KEY, "")
        present = list(self.key_iterator(d))
        image = self.keys[0]
        if not self._do_transform or image not in present:
            return d
        loaded = isinstance(d[image], Tensor | np.ndarray)
        made = self.variants(_source(d[image], loaded))
        if not made:
            return d
        drawn = made[int(self._place * len(made))]
        entry = self.fill()._shelf.take(drawn) if loaded else self.entries[drawn]  # type: ignore[union-attr]
        for key in present:
            d[key] = entry[key]
        d[META_KEY] = self.entries[drawn][META_KEY]
        return d


def _source(value: Any, loaded: bool) -> str:
    if not loaded:
        return str(value)
    name = getattr(value, "meta", {}).get("filename_or_obj")
    if name is None:
        raise DiffAugError(
            "the image does not say what file it came from: put RandBankDrawd before LoadImaged, or keep meta data "
            "(monai.data.set_track_meta(True))"
        )
    return str(name)


def _read(
    path: Path, keys: Sequence[Hashable], allow_missing: bool
) -> tuple[list[Entry], dict[str, list[int]], dict[str, list[int]]]:
    """Entries with absolute paths, and their places by source: by real path, and by name where that is unique."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["training"]
    except FileNotFoundError:
        raise DiffAugError(f"{path} does not exist: run `diffaug expand` first, and give its output folder") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiffAugError(f"{path} is no datalist ({type(error).__name__}): give that of `diffaug expand`") from None
    entries: list[Entry] = []
    of: dict[str, list[int]] = {}
    for raw in listed:
        if not isinstance(raw, Mapping) or "source" not in raw:
            continue  # real images in the same list
        lacks = [key for key in keys if key not in raw]
        if lacks and not allow_missing:
            raise DiffAugError(
                f"{path}: {raw.get('image')} has no {lacks[0]!r}, so its label is not known: leave {lacks[0]!r} out of "
                "`keys`, or set allow_missing_keys to draw other variants"
            )
        if lacks:
            continue
        entry: Entry = {key: _absolute(raw[key], path.parent) for key in keys}
        if not os.path.isfile(str(entry[keys[0]])):
            raise DiffAugError(
                f"{entry[keys[0]]} is missing: run the `diffaug expand` job again, it makes what is lacking"
            )
        entry[META_KEY] = json.dumps(raw.get("provenance", {}), sort_keys=True)
        of.setdefault(os.path.realpath(path.parent / raw["source"]), []).append(len(entries))
        entries.append(entry)
    if not entries:
        raise DiffAugError(f"{path} lists nothing synthetic with {', '.join(map(str, keys))}: give another pool")
    return entries, of, dict(_by_name(of))


def _by_name(of: Mapping[str, list[int]]) -> Iterator[tuple[str, list[int]]]:
    names = [os.path.basename(source) for source in of]
    for source, made in of.items():
        if names.count(os.path.basename(source)) == 1:
            yield os.path.basename(source), made


def _absolute(value: Any, folder: Path) -> Any:
    """A path in the datalist, from where the datalist is; anything else (a class) as it is."""
    if isinstance(value, str) and (folder / value).is_file():
        return str((folder / value).resolve())
    return value


class _Shelf:
    """Prepared items, their voxels in one memory-mapped file that forked and spawned workers share.

    Meta data and everything that is no tensor stay in memory. The file is deleted with the process that made it.
    """

    def __init__(self, entries: Sequence[Entry], keys: Sequence[Hashable], prepare: Callable[[Any], Any]):
        self.items: list[dict[Hashable, Any]] = []
        self._map: np.memmap | None = None
        handle, self.path = tempfile.mkstemp(prefix="diffaug-bank-", suffix=".bin")
        weakref.finalize(self, _remove, self.path, os.getpid())
        at = 0
        try:
            with os.fdopen(handle, "wb") as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                ask = [{k: v for k, v in e.items() if k in keys} for e in entries]
                for entry, item in zip(entries, pool.map(prepare, ask), strict=True):
                    kept = {}
                    for key in keys:
                        kept[key], at = _store(file, item[key], at, entry[META_KEY])
                    self.items.append(kept)
        except OSError as error:
            raise DiffAugError(
                f"{self.path} cannot be written ({error.strerror}): set TMPDIR to a disk with room"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def __deepcopy__(self, memo: Any) -> _Shelf:
        return self  # it never changes, and its file must outlive every copy of the transform

    def take(self, i: int) -> dict[Hashable, Any]:
        """Item ``i``, its tensors copied out of the file."""
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r")
        return {key: _fetch(self._map, value) for key, value in self.items[i].items()}


class _Stored:
    """Where a tensor is in the file, and all of it but its voxels."""

    __slots__ = ("at", "bytes", "dtype", "like", "shape")

    def __init__(self, at: int, array: np.ndarray, like: MetaTensor | None):
        self.at, self.bytes, self.dtype, self.shape, self.like = at, array.nbytes, array.dtype, array.shape, like


def _store(file: Any, value: Any, at: int, record: str) -> tuple[Any, int]:
    if not isinstance(value, Tensor | np.ndarray):
        return value, at
    like = None
    if isinstance(value, MetaTensor):
        like = MetaTensor(torch.zeros(0))
        like.copy_meta_from(value)
        like.meta[META_KEY] = record
    plain = value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)
    array = np.ascontiguousarray(plain.cpu().numpy())
    file.write(array.tobytes())
    gap = -array.nbytes % 64
    file.write(b"\0" * gap)
    return _Stored(at, array, like), at + array.nbytes + gap


def _fetch(mapped: np.memmap, stored: Any) -> Any:
    if not isinstance(stored, _Stored):
        return stored
    raw = mapped[stored.at : stored.at + stored.bytes]
    tensor = torch.from_numpy(np.frombuffer(raw, stored.dtype).reshape(stored.shape).copy())
    if stored.like is None:
        return tensor
    out = MetaTensor(tensor)
    out.__dict__ = {**stored.like.__dict__, "_meta": dict(stored.like.meta)}
    out.applied_operations = list(stored.like.applied_operations)
    return out


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # and not a forked worker that ends
        Path(path).unlink(missing_ok=True)
