"""From a data set's configuration to `RawData` and `Prepared`: memory-mapped, checked, cached."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from pipeline.config.builders import build, check_keys
from pipeline.config.rules import CountOrShare
from pipeline.config.schema import Config, require_validation
from pipeline.data import cache
from pipeline.data.content import content_of
from pipeline.data.exclusion import (
    Exclude,
    excluded_positions,
    require_classes,
    require_places,
    without,
)
from pipeline.data.grouping import RULE
from pipeline.data.own_pictures import (
    DIVISION,
    PACKED,
    TEST_IS_GIVEN,
    Pictures,
    Remarks,
    divided,
    restored,
)
from pipeline.data.packing import Packed, pack, read_packed
from pipeline.data.split import divide
from pipeline.data.values import Array, Identity, Prepared, RawData, Split
from pipeline.system.errors import RequestError, counted, first_of

EXCLUDE = "exclude"  # the key of a data set's leaf
_WHOLE = "whole"  # in the description of an entry with exclusions: names the entry of all images
_SHOWN = 5  # classes named in a warning

log = logging.getLogger(__name__)


def load_data(config: Config) -> Prepared:
    """The data set of a configuration in its splits."""
    return preprocess(ingest(config), config)


def require_data(config: Config) -> Pictures | None:
    """Refuses a data set that is not there, without reading an image.

    What only the images tell, such as damage, is found when they are read. Returns the pictures
    that it has listed, for `ingest`: listing a million files takes ten seconds.

    Raises:
        RequestError: a file or folder is missing, or is not a data set.
        OSError: a folder cannot be searched.
    """
    if _is_of_pictures(_builder(config.dataset)[0]):
        return _listed(config)
    raw_folder(config, checked=True)
    return None


def data_folder(config: Config) -> Path:
    """The folder in which everything about the data set of a configuration is cached."""
    return Path(config.data_dir) / config.choices.dataset


def ingest(
    config: Config,
    *,
    verify: bool = False,
    identity: Identity | None = None,
    pictures: Pictures | None = None,
) -> RawData:
    """Loads the data set of a configuration as its source divides it, from the cache if possible.

    The cache is `<data_folder>/raw-<key>`, one packed array of all images with the rows and labels
    of each split. With `verify`, every byte of it is compared with its checksum. `identity`
    is that of the data that a recorded run used: if the cache has it, picture files and the list of
    `dataset.exclude` are not read. `pictures` are those that `require_data` has listed just before.

    Raises:
        RequestError: no source has it, a file is damaged, or the content is not a data set.
        OSError: the cache cannot be written; names the file.
    """
    folder = data_folder(config)
    if identity and (found := _of_run(config, identity)):
        return found
    builder, given = _builder(config.dataset)
    if _is_of_pictures(builder):
        try:
            pictures = pictures or _listed(config)
        except RequestError as error:
            if identity is None:
                raise
            raise RequestError(
                f"{error}; nor is there a packed copy in {folder} with what the run used "
                f"({identity.fingerprint[:12]}…): restore one of them, or choose its place with "
                "data_dir=…"
            ) from error
        return _of_pictures(pictures, folder, verify=verify)
    entry, exclude = _entry_of(builder, given, folder)
    fetched = partial(_fetched, config.dataset, config.choices.dataset)
    raw = _raw(cache.load_or_build(entry, fetched, verify=verify), None)
    return raw if exclude is None else _without(raw, exclude, entry, verify=verify)


def ingest_recorded(config: Config, identity: Identity | None) -> RawData:
    """The data that a recorded run used, as `ingest` loads it; any, if that is not known.

    Raises:
        RequestError: the data set, or the groups of its pictures, have changed since the run.
    """
    raw = ingest(config, identity=identity)
    if identity and raw.fingerprint != identity.fingerprint:
        raise RequestError(
            f"dataset={config.choices.dataset}: the data here ({raw.fingerprint[:12]}…) is "
            f"not what the run used ({identity.fingerprint[:12]}…); restore that data, or choose "
            "its folder with data_dir=…"
        )
    if identity and identity.has_other_groups(raw.identity):
        raise RequestError(
            f"dataset={config.choices.dataset}: the pictures here are those that the run used, but "
            "in other groups, so other ones would be for validation; restore what groups them (the "
            "column that dataset.group names), or choose their folder with data_dir=…"
        )
    return raw


def _of_run(config: Config, identity: Identity) -> RawData | None:
    return cached(
        config.choices.dataset,
        identity.fingerprint,
        data_dir=Path(config.data_dir),
        arrays=False,
        dataset=config.dataset,
        grouping=identity.grouping,
    )


def _listed(config: Config) -> Pictures:
    pictures: Pictures = build(dict(config.dataset))
    return pictures


def _of_pictures(pictures: Pictures, folder: Path, *, verify: bool) -> RawData:
    packed = pack(pictures.selection, folder, verify=verify)
    key = cache.key(content=[pictures.content, packed.content])
    build = partial(divided, pictures, packed)
    entry = cache.load_or_build(folder / f"raw-{key}", build, verify=verify)
    return _found(entry, packed, pictures.remarks)


def raw_folder(config: Config, *, checked: bool = False) -> Path:
    """The cache folder of the images of a data set, which need not exist.

    With `checked`, refuses data that is not there, as `require_data` does, with the same errors.
    """
    builder, given = _builder(config.dataset)
    if _is_of_pictures(builder):
        return data_folder(config) / str(_listed(config).selection.name)
    entry, exclude = _entry_of(builder, given, data_folder(config))
    if checked and exclude is not None:
        require_places(exclude)
    if checked and not entry.is_dir():
        check_keys("dataset", dict(config.dataset), config.choices.dataset)
    return entry


def _entry_of(
    builder: Callable[..., Any], given: Mapping[str, Any], folder: Path
) -> tuple[Path, str | None]:
    """The cache entry of all images of a data set, and the list of those to exclude, if any."""
    excludes = _can_exclude(builder)
    own = {key: value for key, value in given.items() if not (excludes and key == EXCLUDE)}
    entry = folder / f"raw-{cache.key(content=content_of(builder, own))}"
    return entry, given.get(EXCLUDE) if excludes else None


def _is_of_pictures(builder: Callable[..., Any]) -> bool:
    """Whether a data set's function returns pictures to be packed, and not images."""
    return get_type_hints(builder).get("return") is Pictures


def _can_exclude(builder: Callable[..., Any]) -> bool:
    """Whether a data set's function leaves `dataset.exclude` to this module."""
    return get_type_hints(builder, include_extras=True).get(EXCLUDE) == Exclude


def _builder(dataset: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    module, _, function = dataset["_target_"].rpartition(".")
    given = {key: value for key, value in dataset.items() if key != "_target_"}
    return getattr(importlib.import_module(module), function), given


def cached(
    name: str,
    fingerprint: str,
    *,
    data_dir: Path,
    arrays: bool = True,
    dataset: Mapping[str, Any] | None = None,
    grouping: str | None = None,
) -> RawData | None:
    """The data with that fingerprint if the cache of the data set has it; reads no other files.

    Without `arrays`, considers only pictures, and data with images excluded. The fingerprint does
    not tell the groups of pictures, nor how others would be fitted: with `dataset`, they are those
    of its settings, with `grouping` the groups of that checksum.
    """
    folder = data_dir / name
    for path, meta in _entries(folder, fingerprint, dataset):
        try:
            if _WHOLE in meta:
                whole = _raw(cache.load_stored(folder / meta[_WHOLE]), None)
                return _excluded(cache.load_stored(path), whole)
            if PACKED in meta:
                raw = _raw(cache.load_stored(path), read_packed(folder / meta[PACKED]))
                if raw.index is None or grouping in (None, raw.index.grouping):
                    return raw
            elif arrays:
                return _raw(cache.load_stored(path), None)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None


def _entries(
    folder: Path, fingerprint: str, dataset: Mapping[str, Any] | None
) -> list[tuple[Path, dict[str, Any]]]:
    """The entries of that content with their descriptions; those that say their groups first."""
    found = []
    for path in (*folder.glob("raw-*/entry.json"), *folder.glob("excluded-*/entry.json")):
        try:
            meta = json.loads(path.read_text())["meta"]
            # Pictures of the images' shape have the same pixels, however others would be fitted.
            own = meta.get(DIVISION, {}) | ({"fit": meta["fit"]} if PACKED in meta else {})
            is_meant = dataset is None or own.items() <= dataset.items()
            if is_meant and meta["known"]["fingerprint"] == fingerprint:
                found.append((path.parent, meta))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return sorted(found, key=lambda entry: DIVISION not in entry[1])


def preprocess(raw: RawData, config: Config) -> Prepared:
    """Splits a data set as the configuration says; caches it in `<data_folder>/split-<key>`.

    No image is copied: each split refers to rows of the packed array of `raw`.

    Raises:
        RequestError: a key of `preprocess` does not fit the data set, or settings need validation
            images and there are none.
        OSError: the cache cannot be written; names the file.
    """
    together = {} if raw.index is None else {"groups": raw.index.grouping}
    whole = {key: value for key, value in vars(config.preprocess).items() if key != "limit"}
    key = cache.key(fingerprint=raw.fingerprint, rule=RULE, **together, **whole)
    entry = cache.load_or_build(
        data_folder(config) / f"split-{key}", lambda: (divide(raw, **whole), {})
    )
    if not entry.cached:
        cache.let_go(raw.train.images)  # they were read for the statistics
    prepared = raw.divided(entry.arrays, cached=entry.cached)
    _tell_validation(raw, prepared, config.preprocess.validation_size)
    if not len(prepared.val):
        require_validation(config)
    return prepared.limited(config.preprocess.limit)


def _fetched(dataset: Mapping[str, Any], name: str) -> cache.Content:
    try:
        raw: RawData = build(dict(dataset))  # whole: `_without` excludes
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
        return _with_exclusions_logged(restored(entry, packed))
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


@lru_cache(maxsize=1)
def _found(entry: cache.Entry, packed: Packed, remarks: Remarks) -> RawData:
    """The pictures as they lie now; says what a user should know before training on them."""
    raw = restored(entry, packed, remarks)
    for warning in remarks.warnings:
        log.warning(warning)
    if raw.index and TEST_IS_GIVEN in raw.index.notes:
        log.info(TEST_IS_GIVEN)
    return _with_exclusions_logged(raw)


def _without(raw: RawData, exclude: str, place: Path, *, verify: bool) -> RawData:
    """A data set without the images that a list names; `place` is the cache entry of the whole.

    Raises:
        RequestError: the list cannot be read, names what is not there, or leaves too little.
    """
    splits = raw.splits
    out = excluded_positions(exclude, {name: len(split) for name, split in splits.items()})
    if not sum(map(len, out.values())):
        return raw
    left = {name: without(split, out[name]) for name, split in splits.items()}
    require_classes(exclude, raw.train.labels, left["train"].labels, raw.class_names)
    if empty := [name for name, split in left.items() if not len(split)]:
        raise RequestError(f"dataset.exclude={exclude}: leaves nothing of the {empty[0]} split")
    key = cache.key(
        whole=raw.fingerprint,
        excluded={name: positions.tolist() for name, positions in out.items()},
    )

    def content() -> cache.Content:
        made = _with(raw, left)
        known = {"fingerprint": made.fingerprint, "duplicates": made.duplicates}
        rows = {f"{name}_rows": split.rows for name, split in left.items()}
        labels = {f"{name}_labels": split.labels for name, split in left.items()}
        return rows | labels, {"known": known, _WHOLE: place.name}

    entry = place.with_name(f"excluded-{key}")
    return _excluded(cache.load_or_build(entry, content, verify=verify), raw)


def _with(raw: RawData, splits: Mapping[str, Split]) -> RawData:
    return replace(raw, train=splits["train"], test=splits["test"], val=splits.get("val"))


@lru_cache(maxsize=1)
def _excluded(entry: cache.Entry, raw: RawData) -> RawData:
    splits = raw.splits
    left = {name: _split({"images": raw.train.images, **entry.arrays}, name) for name in splits}
    gone = sum(map(len, splits.values())) - sum(map(len, left.values()))
    cached = raw.cached and entry.cached
    made = replace(_with(raw, left), excluded=gone, whole=raw, cached=cached)
    vars(made).update(entry.meta["known"])
    return _with_exclusions_logged(made)


def _with_exclusions_logged(raw: RawData) -> RawData:
    """The data set itself; logs how many images are excluded from it, if any are."""
    if raw.excluded:
        log.info("dataset.exclude leaves out %s", counted(raw.excluded, "image", "images"))
    return raw


def _tell_missing(raw: RawData) -> None:
    """Warns of classes without an image in a split."""
    for split, part, means in (
        ("training", raw.train, "a model cannot learn to recognise them"),
        ("test", raw.test, "the test metrics say nothing about them"),
    ):
        counts = np.bincount(part.labels, minlength=len(raw.class_names))
        missing = [raw.class_names[position] for position in np.flatnonzero(counts == 0)]
        if missing:
            told = first_of(missing, _SHOWN, repr)
            log.warning("the %s split has no images of %s: %s", split, told, means)


def _tell_validation(raw: RawData, prepared: Prepared, asked: CountOrShare) -> None:
    """Says where the validation images are not as many as `asked` for.

    They are a split of the data's own, or their groups do not allow that number.
    """
    if raw.val is not None:
        log.info(
            "preprocess.validation_size and preprocess.seed have no effect: the data has a "
            "validation split of its own, which is used"
        )
    elif raw.index is not None and 1 <= asked != len(prepared.val):
        told = counted(len(prepared.val), "picture is", "pictures are")
        log.warning(
            "preprocess.validation_size=%s: %s for validation, since those of one group stay "
            "together",
            asked,
            told,
        )


def _split(arrays: Mapping[str, Array], name: str) -> Split:
    rows, labels = arrays[f"{name}_rows"], arrays[f"{name}_labels"]
    return Split(images=arrays["images"], rows=rows, labels=labels)
