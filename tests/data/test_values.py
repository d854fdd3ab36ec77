from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from pipeline.data.values import Evaluation, Predictions, Prepared, RawData, Split, exceeds


def split(labels: list[int], **changes: Any) -> Split:
    images = np.zeros((len(labels), 2, 3, 1), np.uint8)
    return Split(**{"images": images, "labels": np.array(labels, np.int32), **changes})


RAW = RawData(train=split([0, 1, 1]), test=split([1]), class_names=("cat", "dog"), source="test")


@pytest.mark.parametrize(
    ("images", "rule"),
    [
        (np.zeros((2, 2, 3, 1)), "images must be uint8, not float64"),
        (np.zeros((2, 2, 3), np.uint8), r"images must be \[N,H,W,C\], not \(2, 2, 3\)"),
        (np.zeros((3, 2, 3, 1), np.uint8), r"3 images but labels of shape \(2,\)"),
    ],
)
def test_images_of_another_dtype_or_shape_are_refused(images: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        split([0, 1], images=images)


def test_labels_of_another_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match="labels must be int32, not int64"):
        replace(RAW.train, labels=np.array([0, 1, 1], np.int64))


PACKED = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)


def rows_of(*rows: int) -> Split:
    return Split(images=PACKED, rows=np.array(rows, np.int64), labels=np.array(rows, np.int32))


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        (np.array([0, 5]), "rows span 0–5 of 5 images"),
        (np.array([-1, 0]), "rows span -1–0 of 5 images"),
        (np.array([0, 1], np.int32), "rows must be int64, not int32"),
        (np.array([[0, 1]]), r"rows must be \[n\], not \(1, 2\)"),
        (np.array([0, 1, 2]), r"3 images but labels of shape \(2,\)"),
    ],
)
def test_rows_that_the_packed_array_does_not_have_are_refused(rows: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Split(images=PACKED, rows=rows, labels=np.array([0, 1], np.int32))


def test_a_split_without_rows_is_the_whole_array() -> None:
    whole = Split(images=PACKED, labels=np.zeros(5, np.int32))
    assert (len(whole), whole.rows.tolist()) == (5, [0, 1, 2, 3, 4])


def test_images_come_in_the_order_of_the_rows() -> None:
    split = rows_of(3, 1, 2, 4)
    assert len(split) == 4
    assert split.take(0).shape == split.image_shape == (1, 1, 1)
    assert split.take(np.array([2, 0])).ravel().tolist() == [2, 3]
    assert split.batch(0, 9).ravel().tolist() == [3, 1, 2, 4]
    assert [batch.ravel().tolist() for batch in split.batches(3)] == [[3, 1, 2], [4]]
    assert [batch.ravel().tolist() for batch in split.batches()] == [[3, 1, 2, 4]]
    assert list(rows_of().batches()) == []


def test_a_batch_of_adjoining_rows_is_not_copied() -> None:
    assert np.shares_memory(rows_of(1, 2, 3).batch(1, 3), PACKED)
    assert not np.shares_memory(rows_of(1, 3).batch(0, 2), PACKED)


def test_a_selection_of_a_split_shares_its_images() -> None:
    selected = rows_of(3, 1, 2).select(np.array([2, 0]))
    assert selected.images is PACKED
    assert (selected.rows.tolist(), selected.labels.tolist()) == ([2, 3], [2, 3])


def test_of_a_limited_number_of_images_there_are_as_many_of_each_class_in_their_order() -> None:
    images, labels = np.zeros((7, 1, 1, 1), np.uint8), np.array([0, 0, 0, 0, 1, 2, 1], np.int32)
    split = Split(images=images, labels=labels)
    assert split.limited(4).rows.tolist() == [0, 1, 4, 5]
    assert split.limited(9).rows.tolist() == [*range(7)]


def test_rows_of_a_packed_array_have_the_fingerprint_of_the_images_themselves() -> None:
    names = ("a", "b", "c", "d", "e")
    viewed = RawData(train=rows_of(3, 1), test=rows_of(4, 0), class_names=names, source="s")
    copied = [
        Split(images=split.batch(0, 2).copy(), labels=split.labels)
        for split in (viewed.train, viewed.test)
    ]
    alone = RawData(train=copied[0], test=copied[1], class_names=names, source="s")
    assert viewed.fingerprint == alone.fingerprint
    assert alone.fingerprint == KNOWN


# As the version that stored splits one by one worked it out.
KNOWN = "da721a05a6d33e34bc39b6d20c3b75eeb6444d845fd8d409d0decc4ba972739f"


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        RAW.source = "elsewhere"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"test": split([2])}, "test labels span 2–2, but there are 2 classes"),
        ({"train": split([-1, 0])}, "train labels span -1–0"),
        ({"test": split([])}, "the test split has no images"),
        ({"class_names": ("cat",)}, "at least two classes"),
        ({"class_names": ("cat", "dog", "cat")}, "two classes have the same name: \\['cat'\\]"),
        (
            {"test": split([0], images=np.zeros((1, 3, 3, 1), np.uint8))},
            r"train images are \(2, 3, 1\), test \(3, 3, 1\)",
        ),
    ],
)
def test_splits_that_do_not_belong_together_are_refused(changes: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        replace(RAW, **changes)


def test_the_fingerprint_depends_on_content_and_not_on_where_it_came_from() -> None:
    assert replace(RAW, source="elsewhere", cached=True).fingerprint == RAW.fingerprint
    images = RAW.train.images.copy()
    images[-1, -1, -1, -1] = 1
    changed = [
        replace(RAW, train=replace(RAW.train, images=images)),
        replace(RAW, train=split([1, 0, 1])),
        replace(RAW, class_names=("cat", "cow")),
        replace(RAW, train=RAW.test, test=RAW.train),
    ]
    assert len({RAW.fingerprint, *(other.fingerprint for other in changed)}) == 5


def prepared(**changes: Any) -> Prepared:
    statistic = np.zeros(1, np.float32)
    splits = {"train": RAW.train, "val": split([]), "test": RAW.test}
    origin = {"class_names": RAW.class_names, "fingerprint": "f", "source": "s"}
    return Prepared(**{**splits, **origin, "mean": statistic, "std": statistic, **changes})


def test_prepared_data_may_have_no_validation_images_and_knows_its_shape() -> None:
    assert len(prepared().val) == 0
    assert prepared().image_shape == (2, 3, 1)


def test_a_limit_holds_for_training_and_validation_and_the_test_split_stays_whole() -> None:
    data = prepared(val=split([0, 1]), test=split([0, 1, 1]))
    few = data.limited(1)
    assert (len(few.train), len(few.val), len(few.test)) == (1, 1, 3)
    assert data.limited(None) is data


def test_a_division_selects_by_position_and_leaves_a_validation_split_of_the_source() -> None:
    statistic, own = np.zeros(1, np.float32), split([0])
    division = {"train": np.array([2, 0]), "val": np.array([1]), "mean": statistic}
    division |= {"std": statistic + 1}
    made = RAW.divided(division, cached=True)
    assert (made.train.rows.tolist(), made.val.rows.tolist()) == ([2, 0], [1])
    assert made.train.images is RAW.train.images
    assert (made.test, made.std, made.cached) == (RAW.test, division["std"], True)
    assert replace(RAW, val=own).divided(division).val is own


def test_statistics_of_another_shape_or_dtype_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mean must be f32\[1\], not float32\[3\]"):
        prepared(mean=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"std must be f32\[1\], not float64\[1\]"):
        prepared(std=np.zeros(1))


def test_predictions_name_the_most_probable_class_and_its_probability() -> None:
    made = Predictions(
        split=Split(images=RAW.train.images, labels=RAW.train.labels),
        probabilities=np.array([[0.75, 0.25], [0.5, 0.5], [0, 1]], np.float32),
        class_names=RAW.class_names,
    )
    np.testing.assert_array_equal(made.predicted, [0, 0, 1])
    np.testing.assert_array_equal(made.confidence, np.array([0.75, 0.5, 1], np.float32))
    assert made.predicted.dtype == np.int32
    assert made.probs is made.probabilities  # for metrics written for earlier versions


def test_probabilities_for_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probabilities must be \(3, 2\), not \(3, 4\)"):
        Predictions(
            split=Split(images=RAW.train.images, labels=RAW.train.labels),
            probabilities=np.zeros((3, 4), np.float32),
            class_names=RAW.class_names,
        )


def test_values_show_themselves_in_a_line_without_their_arrays() -> None:
    assert repr(RAW) == "RawData(train 3, test 1; 2×3×1, 2 classes; test)"
    assert repr(RAW.train) == "Split(3 images 2×3×1)"
    probabilities = np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1]], np.float32)
    shown = repr(
        Predictions(split=RAW.train, probabilities=probabilities, class_names=RAW.class_names)
    )
    assert shown == "Predictions(3 images, 2 classes, 0.6667 of them right)"
    found = Evaluation(metrics={"test/accuracy": 0.5}, texts={"class_report.txt": "…"})
    assert repr(found) == "Evaluation(test/accuracy=0.5000; class_report.txt)"


def test_a_limit_accepts_just_the_share_that_it_names() -> None:
    for count in range(101):
        limit = float(f"{count / 100:.2f}")
        assert not exceeds(count, 100, limit)
        assert count == 100 or exceeds(count + 1, 100, limit)
    assert not exceeds(0, 0, 0.0)


def test_images_have_the_numbers_that_exclude_takes() -> None:
    images = np.zeros((6, 2, 3, 1), np.uint8)
    labels = np.array([0, 1, 0], np.int32)
    whole = RawData(
        train=Split(images=images, labels=labels, rows=np.arange(3)),
        test=Split(images=images, labels=labels, rows=np.arange(3, 6)),
        class_names=("cat", "dog"),
        source="test",
    )
    left = replace(whole, test=whole.test.select(np.array([0, 2])), whole=whole)
    mean = np.zeros(1, np.float32)
    division = {"train": np.array([0]), "val": np.array([2]), "mean": mean, "std": mean + 1}
    prepared = left.divided(division)
    shown = prepared.predictions(prepared.test, np.zeros((2, 2), np.float32))
    assert shown.numbers.tolist() == [0, 2]
    drawn = prepared.predictions(prepared.val, np.zeros((1, 2), np.float32))
    assert drawn.numbers.tolist() == [2]  # of the training split
    # Of a validation split of the source, also those that a limit leaves.
    own = replace(
        whole, val=Split(images=images, labels=np.array([0, 0, 1], np.int32), rows=np.arange(3))
    )
    few = own.divided(division).limited(2)
    shown = few.predictions(few.val, np.zeros((2, 2), np.float32))
    assert shown.numbers.tolist() == [0, 2]
