"""From a data set's configuration to `RawData` and `Prepared`: memory-mapped, checked, cached."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.builders import build
from pipeline.data import cache
from pipeline.data.content import content_of
from pipeline.data.split import divide, divided
from pipeline.data.values import Array, Prepared, RawData, Split
from pipeline.system.errors import RequestError


def ingest(
    dataset: Mapping[str, Any], *, name: str, data_dir: Path, verify: bool = False
) -> RawData:
    """The data set of a checked leaf (`_target_` and its parameters), from the cache if there.

    `name` is the leaf's choice, such as `fashion_mnist`; the cache is `data_dir/<name>/raw-<key>`,
    one packed array of all images with the rows and labels of both splits. With `verify` every
    byte of it is compared with its checksum.

    Raises:
        RequestError: no source has it, a file is damaged, or the content is not a data set.
        OSError: the cache cannot be written; names the file.
    """
    folder = raw_folder(dataset, name=name, data_dir=data_dir)
    return _raw(cache.load_or_build(folder, lambda: _fetched(dataset, name), verify=verify))


def raw_folder(dataset: Mapping[str, Any], *, name: str, data_dir: Path) -> Path:
    """Where the cache has, or would have, the data set of a checked leaf."""
    module, _, function = dataset["_target_"].rpartition(".")
    builder = getattr(importlib.import_module(module), function)
    given = {key: value for key, value in dataset.items() if key != "_target_"}
    return data_dir / name / f"raw-{cache.key(content=content_of(builder, given))}"


def prepare(raw: RawData, config: Mapping[str, Any], *, name: str, data_dir: Path) -> Prepared:
    """`preprocess(raw, **config)`, its division from the cache `data_dir/<name>/split-<key>`.

    The images stay where they are: every split is rows of the packed array of `raw`.

    Raises:
        RequestError: a parameter of `config` does not fit the data set.
        OSError: the cache cannot be written; names the file.
    """
    key = cache.key(fingerprint=raw.fingerprint, **config)
    entry = cache.load_or_build(
        data_dir / name / f"split-{key}", lambda: (divide(raw, **config), {})
    )
    if not entry.cached:
        cache.let_go(raw.train.images)  # they were read for the statistics
    return divided(raw, entry.arrays, cached=entry.cached)


def _fetched(dataset: Mapping[str, Any], name: str) -> cache.Content:
    try:
        raw: RawData = build(dict(dataset))
    except ValueError as error:
        raise RequestError(f"dataset={name}: {error}; see {dataset['_target_']}") from error
    arrays = _packed(raw)
    known = {"fingerprint": raw.fingerprint, "duplicates": raw.duplicates}
    return arrays, {"class_names": raw.class_names, "source": raw.source, "known": known}


def _packed(raw: RawData) -> dict[str, Array | cache.Stream]:
    """All images as one array, behind it the rows and labels of each split."""
    splits = {"train": raw.train, "test": raw.test}
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


@lru_cache(maxsize=1)  # the next job of a process asks for the same again
def _raw(entry: cache.Entry) -> RawData:
    raw = RawData(
        train=_split(entry.arrays, "train"),
        test=_split(entry.arrays, "test"),
        class_names=tuple(entry.meta["class_names"]),
        source=entry.meta["source"],
        cached=entry.cached,
    )
    vars(raw).update(entry.meta["known"])  # what it would have to read every image for
    return raw


def _split(arrays: Mapping[str, Array], name: str) -> Split:
    rows, labels = arrays[f"{name}_rows"], arrays[f"{name}_labels"]
    return Split(images=arrays["images"], rows=rows, labels=labels)
