"""Data sets divided without a configuration or a cache."""

from __future__ import annotations

from pipeline.config.rules import CountOrShare
from pipeline.data.split import divide
from pipeline.data.values import Prepared, RawData


def in_splits(
    raw: RawData, *, validation_size: CountOrShare, seed: int, limit: int | None = None
) -> Prepared:
    """A data set divided as the keys of `preprocess` say."""
    division = divide(raw, validation_size=validation_size, seed=seed)
    return raw.divided(division).limited(limit)
