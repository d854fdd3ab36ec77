"""From a data set's configuration to `RawData` and `Prepared`: memory-mapped, checked, cached."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from pipeline.config.builders import build
from pipeline.data import cache
from pipeline.data.content import content_of
from pipeline.data.folders import PACKED, Pictures, arranged, restored
from pipeline.data.packing import Packed, pack, read_packed
from pipeline.data.split import divide, divided, limited
from pipeline.data.values import Array, Prepared, RawData, Split
from pipeline.system.errors import RequestError

SHOWN = 5  # classes named in a warning

log = logging.getLogger(__name__)


def ingest(
    dataset: Mapping[str, Any],
    *,
    name: str,
    data_dir: Path,
    verify: bool = False,
    fingerprint: str | None = None,
) -> RawData:
    """Loads the data set of a checked leaf (`_target_` and parameters), from the cache if possible.

    `name` is the leaf's file, such as `fashion_mnist`; the cache is `data_dir/<name>/raw-<key>`,
    one packed array of all images with the rows and labels of each split. With `verify`, every
    byte of it is compared with its checksum. For pictures, `fingerprint` is that of the data a
    recorded run has used: if the cache has it, the files are not asked for.

    Raises:
        RequestError: no source has it, a file is damaged, or the content is not a data set.
        OSError: the cache cannot be written; names the file.
    """
    folder = data_dir / name
    if fingerprint and (found := _cached_pictures(folder, fingerprint)):
        return _raw(found, read_packed(folder / found.meta[PACKED]))
    builder, given = _builder(dataset)
    if _is_of_pictures(builder):
        try:
            pictures = build(dict(dataset))
        except RequestError as error:
            if fingerprint is None:
                raise
            raise RequestError(
                f"{error}; nor is there a packed copy in {folder} with what the run used "
                f"({fingerprint[:12]}…): restore one of them, or choose its place with data_dir=…"
            ) from error
        packed = pack(pictures.selection, folder, verify=verify)
        key = cache.key(content=[pictures.content, packed.content])
        entry = cache.load_or_build(folder / f"raw-{key}", lambda: arranged(pictures, packed))
        return _raw(entry, packed)
    key = cache.key(content=content_of(builder, given))
    fetched = partial(_fetched, dataset, name)
    return _raw(cache.load_or_build(folder / f"raw-{key}", fetched, verify=verify), None)


def raw_folder(dataset: Mapping[str, Any], *, name: str, data_dir: Path) -> Path:
    """The cache folder of the images of a checked leaf, which need not exist."""
    builder, given = _builder(dataset)
    if _is_of_pictures(builder):
        return data_dir / name / str(build(dict(dataset)).selection.name)
    return data_dir / name / f"raw-{cache.key(content=content_of(builder, given))}"


def _is_of_pictures(builder: Callable[..., Any]) -> bool:
    """Whether a data set's function returns pictures to be packed, and not images."""
    return get_type_hints(builder).get("return") is Pictures


def _builder(dataset: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    module, _, function = dataset["_target_"].rpartition(".")
    given = {key: value for key, value in dataset.items() if key != "_target_"}
    return getattr(importlib.import_module(module), function), given


def _cached_pictures(folder: Path, fingerprint: str) -> cache.Entry | None:
    for path in folder.glob("raw-*/entry.json"):
        try:
            meta = json.loads(path.read_text())["meta"]
            if PACKED in meta and meta["known"]["fingerprint"] == fingerprint:
                return cache.load_stored(path.parent)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None


def prepare(raw: RawData, config: Mapping[str, Any], *, name: str, data_dir: Path) -> Prepared:
    """Returns `preprocess(raw, **config)`; its splits are cached in `data_dir/<name>/split-<key>`.

    No image is copied: each split refers to rows of the packed array of `raw`.

    Raises:
        RequestError: a parameter of `config` does not fit the data set.
        OSError: the cache cannot be written; names the file.
    """
    together = {} if raw.index is None else {"groups": raw.index.grouping}
    whole = {key: value for key, value in config.items() if key != "limit"}
    key = cache.key(fingerprint=raw.fingerprint, **together, **whole)
    entry = cache.load_or_build(
        data_dir / name / f"split-{key}", lambda: (divide(raw, **whole), {})
    )
    if not entry.cached:
        cache.let_go(raw.train.images)  # they were read for the statistics
    prepared = divided(raw, entry.arrays, cached=entry.cached)
    return limited(prepared, config.get("limit"))


def _fetched(dataset: Mapping[str, Any], name: str) -> cache.Content:
    try:
        raw: RawData = build(dict(dataset))
    except ValueError as error:
        raise RequestError(f"dataset={name}: {error}; see {dataset['_target_']}") from error
    arrays = _packed(raw)
    known = {"fingerprint": raw.fingerprint, "duplicates": raw.duplicates}
    return arrays, {"class_names": raw.class_names, "source": raw.source, "known": known}


def _packed(raw: RawData) -> dict[str, Array | cache.Stream]:
    """All images as one array, with the rows and labels of each split."""
    splits = {"train": raw.train, "test": raw.test}
    splits |= {"val": raw.val} if raw.val is not None else {}
    images = list({id(split.images): split.images for split in splits.values()}.values())
    firsts = dict(zip(map(id, images), np.cumsum([0, *map(len, images)]).tolist(), strict=False))
    packed: dict[str, Array | cache.Stream] = {
        "images": cache.Stream(
            shape=(sum(map(len, images)), *raw.train.image_shape),
            dtype=np.dtype(np.uint8),
            parts=images,
        )
    }
    for name, split in splits.items():
        packed |= {f"{name}_rows": split.rows + firsts[id(split.images)]}
        packed |= {f"{name}_labels": split.labels}
    return packed


@lru_cache(maxsize=1)  # the next job in this process needs the same one
def _raw(entry: cache.Entry, packed: Packed | None) -> RawData:
    if packed is not None:
        return restored(entry, packed)
    raw = RawData(
        train=_split(entry.arrays, "train"),
        test=_split(entry.arrays, "test"),
        val=_split(entry.arrays, "val") if "val_rows" in entry.arrays else None,
        class_names=tuple(entry.meta["class_names"]),
        source=entry.meta["source"],
        cached=entry.cached,
    )
    vars(raw).update(entry.meta["known"])  # saves reading every image to work it out
    _tell_missing(raw)
    return raw


def _tell_missing(raw: RawData) -> None:
    """Warns of classes without an image in a split."""
    for split, part, means in (
        ("training", raw.train, "a model cannot learn to recognize them"),
        ("test", raw.test, "the test metrics say nothing about them"),
    ):
        counts = np.bincount(part.labels, minlength=len(raw.class_names))
        missing = [raw.class_names[place] for place in np.flatnonzero(counts == 0)]
        if missing:
            named = ", ".join(map(repr, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
            log.warning("the %s split has no images of %s: %s", split, named, means)


def _split(arrays: Mapping[str, Array], name: str) -> Split:
    rows, labels = arrays[f"{name}_rows"], arrays[f"{name}_labels"]
    return Split(images=arrays["images"], rows=rows, labels=labels)
