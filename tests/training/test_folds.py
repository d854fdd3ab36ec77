from __future__ import annotations

import numpy as np
import pytest

from pipeline.system.errors import RequestError
from pipeline.training.folds import into_folds


def test_folds_are_equal_parts_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 10])
    fold = into_folds(labels, np.arange(90), 5, seed=0)
    for label, count in ((0, 10), (1, 6), (2, 2)):
        assert np.bincount(fold[labels == label], minlength=5).tolist() == [count] * 5


def test_pictures_of_a_group_are_in_one_fold() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 40, 200)
    labels = groups % 3
    fold = into_folds(labels, groups, 4, seed=0)
    assert all(len(np.unique(fold[groups == group])) == 1 for group in np.unique(groups))
    assert np.bincount(fold).tolist() == [49, 46, 51, 54]


def test_another_seed_gives_other_folds_and_the_same_seed_the_same() -> None:
    labels = np.arange(60) % 3
    one, again, other = (into_folds(labels, np.arange(60), 3, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_class_of_one_group_is_in_the_last_fold() -> None:
    labels = np.repeat([0, 1], [20, 4])
    groups = np.concatenate([np.arange(20), [99] * 4])
    assert into_folds(labels, groups, 4, seed=0)[labels == 1].tolist() == [3] * 4


def test_too_few_groups_for_so_many_folds_are_refused() -> None:
    with pytest.raises(RequestError, match=r"audit\.folds=5: 6 images in 2 groups are too few"):
        into_folds(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1]), 5, seed=0)


def test_many_classes_of_fewer_pictures_than_folds_are_spread_over_all_of_them() -> None:
    labels = np.repeat(np.arange(100), 4)
    fold = into_folds(labels, np.arange(400), 5, seed=0)
    assert np.bincount(fold).tolist() == [80] * 5
    assert all(len(np.unique(fold[labels == label])) == 4 for label in range(100))
    frames = into_folds(labels, np.arange(400) // 2, 5, seed=0)  # two pictures per group
    assert np.bincount(frames).tolist() == [80] * 5
    assert np.array_equal(frames[::2], frames[1::2])


def test_folds_of_groups_with_pictures_of_several_classes_are_about_equal() -> None:
    labels = np.tile(np.arange(10, dtype=np.int32), 200)
    fold = into_folds(labels, np.repeat(np.arange(200), 10), 5, seed=0)
    assert np.bincount(fold).tolist() == [400] * 5
