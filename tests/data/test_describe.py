from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data import values
from pipeline.data.describe import SplitFacts, describe, text
from pipeline.data.values import RawData, Split


@pytest.fixture
def known() -> RawData:
    """Two of the three test images are in the training split; trailing zeros matter."""
    train = np.array([[1, 0], [0, 0], [3, 3], [4, 4]], np.uint8).reshape(4, 1, 2, 1)
    test = np.array([[1, 0], [0, 1], [3, 3]], np.uint8).reshape(3, 1, 2, 1)
    return RawData(
        train=Split(images=train, labels=np.array([0, 0, 0, 1], np.int32)),
        test=Split(images=test, labels=np.array([1, 1, 1], np.int32)),
        class_names=("cat", "dog"),
        source="a test",
    )


def test_a_description_counts_everything(known: RawData) -> None:
    description = describe(known)
    assert description.splits["train"] == SplitFacts(
        shape=(4, 1, 2, 1),
        image_dtype="uint8",
        label_dtype="int32",
        label_range=(0, 1),
        per_class=(3, 1),
    )
    assert description.splits["test"].per_class == (0, 3)
    assert description.splits["test"].label_range == (1, 1)
    assert description.duplicates == 2
    assert description.fingerprint == known.fingerprint


@pytest.mark.parametrize("bytes_at_once", [1, 6])
def test_duplicates_are_counted_across_the_parts_that_are_compared(
    known: RawData, bytes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(values, "BLOCK_BYTES", bytes_at_once)
    assert describe(known).duplicates == 2


def test_a_description_reads_as_text(known: RawData) -> None:
    lines = [line.split() for line in text(describe(known)).splitlines()]
    assert ["Data", "from", "a", "test"] in lines
    assert ["│", "also", "in", "train", "│", "│", "2", "(66.67%)", "│"] in lines
    assert ["│", "cat", "│", "3", "(75.0%)", "│", "0", "(0.0%)", "│"] in lines
    assert ["│", "shape", "│", "1×2×1", "│", "1×2×1", "│"] in lines


def test_nearly_all_images_are_not_described_as_all(known: RawData) -> None:
    found = describe(known)
    test = replace(found.splits["test"], shape=(30_000, 1, 2, 1), per_class=(29_999, 1))
    described = text(replace(found, splits={**found.splits, "test": test}, duplicates=1))
    assert all(share in described for share in ("1 (<0.01%)", "29,999 (>99.9%)", "1 (<0.1%)"))
