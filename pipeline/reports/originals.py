"""The picture files behind some training images, as the page of a data set shows them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

import numpy as np

from pipeline.data import cache
from pipeline.data.archives import place_at
from pipeline.data.pictures import Picture, contained, open_picture
from pipeline.data.reading import remarks_dropped
from pipeline.data.values import Array, RawData

ORIGINALS = 12  # shown at most
ORIGINAL = 150  # pixels of an original's longer side


@dataclass(frozen=True, kw_only=True, eq=False)
class Originals:
    """Picture files as tiles u8[m,h,w,3], and the rows i64[m] of the images made of them."""

    rows: Array
    tiles: Array


def no_originals() -> Originals:
    """Those of a data set that does not come from picture files."""
    return Originals(
        rows=np.empty(0, np.int64), tiles=np.empty((0, ORIGINAL, ORIGINAL, 3), np.uint8)
    )


def rows_to_show(raw: RawData) -> Array:
    """Rows i64[n] of training images, twice as many as are shown, since files may be gone."""
    count = min(len(raw.train), 2 * ORIGINALS)
    positions = np.unique(np.linspace(0, len(raw.train) - 1, count).astype(np.int64))
    chosen = raw.train.rows[positions]
    # Every other one comes first, so that they come from the whole split.
    return np.concatenate([chosen[::2], chosen[1::2]])


def read_originals(raw: RawData, folder: Path) -> Originals:
    """Reads the files of up to ORIGINALS training images.

    The first call keeps them in the data set's cache `folder`, so that later ones need neither the
    files nor to unpack an archive. Files that are gone or changed by then are left out.
    """
    if raw.index is None:
        return no_originals()
    rows = rows_to_show(raw)
    files = [raw.index.sha256[row].tobytes().hex() for row in rows.tolist()]
    entry = folder / f"originals-{cache.key(files=files, most=ORIGINALS, side=ORIGINAL)}"
    try:
        known: Mapping[str, Array] = cache.load_stored(entry).arrays
    except FileNotFoundError:
        with remarks_dropped():
            tiles = _read(raw, rows)
        if not tiles:
            return no_originals()
        known = {"places": np.array([*tiles]), "tiles": np.stack([*tiles.values()])}
        with suppress(OSError):  # the page does without
            cache.load_or_build(entry, lambda: (known, {}))
    return Originals(rows=rows[known["places"]], tiles=known["tiles"])


def _read(raw: RawData, rows: Array) -> dict[int, Array]:
    """The tiles u8[h,w,3] of up to ORIGINALS files that are what was packed, by place in `rows`."""
    assert raw.index is not None
    tiles: dict[int, Array] = {}
    source = place_at(Path(raw.index.root))
    for position, row in enumerate(rows.tolist()):
        try:
            if source is None:
                break
            with source.opened(raw.index.files[row]) as file:
                digest = file_digest(file, "sha256").digest()  # type: ignore[arg-type]
                if digest != raw.index.sha256[row].tobytes():
                    continue
                file.seek(0)
                tiles[position] = _tile(open_picture(file, side=ORIGINAL))
        except Exception:  # it is gone; a decoder may raise anything
            continue
        if len(tiles) == ORIGINALS:
            break
    return tiles


def _tile(picture: Picture) -> Array:
    """A picture on a grey square u8[h,w,3]; a transparent one would need PNG."""
    tile = np.full((ORIGINAL, ORIGINAL, 3), 128, np.uint8)
    small = np.asarray(contained(picture.convert("RGB"), (ORIGINAL, ORIGINAL)))
    top, left = ((ORIGINAL - side) // 2 for side in small.shape[:2])
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile
