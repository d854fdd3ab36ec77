from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import grouping
from pipeline.data.grouping import duplicates, held_out, join_groups, named_groups
from pipeline.data.packing import perceptual_hash
from pipeline.data.values import EXACT, NEAR, Array
from pipeline.system.errors import RequestError
from tests.pictures import noise

FILES = ("cat/s1_0.png", "cat/s1_1.png", "dog/s2_0.png", "dog/x.png")


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("parent", [0, 0, 1, 1]),
        ("subject", [0, 1, 0, 2]),
        (r"^(\w+)_", [0, 0, 1, 2]),
        (r"s\d", [0, 0, 1, 2]),
        (r"^([a-z]+)/", [0, 0, 1, 1]),
    ],
)
def test_a_group_is_a_column_the_folder_or_a_match(group: str | None, expected: list[int]) -> None:
    columns = {"subject": ["7", "", "7", ""]}
    assert named_groups(group, FILES, columns).tolist() == (
        [0, 1, 0, 2] if group == "subject" else expected
    )


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ("subjects", "matches none of the files; name a column"),
        ("(", "no regular expression"),
        (r".*", "every file is a group of its own"),
    ],
)
def test_a_group_that_groups_nothing_is_refused(group: str, reason: str) -> None:
    with pytest.raises(RequestError, match=f"dataset.group=.*{reason}"):
        named_groups(group, FILES, {})


def found(images: list[Array], threshold: int | None = 4) -> list[list[int]]:
    stack = np.stack(images)
    digests = np.array([list(__import__("hashlib").sha256(i).digest()) for i in stack], np.uint8)
    hashes = np.array([perceptual_hash(image) for image in stack], np.uint64)
    pairs = duplicates(digests, hashes, lambda places: stack[places], threshold=threshold)
    return [list(pair) for pair in pairs.tolist()]


def test_equal_pictures_are_paired_with_the_first_and_similar_ones_with_each_other() -> None:
    one, other = noise(1, (48, 48, 1)), noise(2, (48, 48, 1))
    shaken = np.clip(one + np.random.default_rng(3).integers(-3, 4, one.shape), 0, 255)
    images = [one, other, one, shaken.astype(np.uint8), one]
    assert found(images) == [[0, 2, EXACT], [0, 4, EXACT], [0, 3, NEAR]]
    assert found(images, None) == [[0, 2, EXACT], [0, 4, EXACT]]


def test_pictures_of_one_luma_and_two_colours_are_not_similar() -> None:
    rng = np.random.default_rng(0)
    red, green = (
        np.clip(np.array(colour) + rng.integers(-5, 6, (48, 48, 1)), 0, 255).astype(np.uint8)
        for colour in ((220, 0, 0), (0, 112, 0))
    )
    assert found([red, green]) == []


def test_pictures_that_show_nothing_are_only_equal_or_not() -> None:
    images = [np.full((16, 16, 1), value, np.uint8) for value in (7, 7, 8)]
    assert found(images) == [[0, 1, EXACT]]


def test_hashes_of_few_different_bits_are_all_found() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300).astype(np.uint64)
    for place in range(100):
        hashes[place] = hashes[place + 100]
        for bit in rng.choice(64, rng.integers(0, 5), replace=False):
            hashes[place] ^= np.uint64(1 << int(bit))
    one, other = np.triu_indices(300, 1)
    near = np.bitwise_count(hashes[one] ^ hashes[other]) <= 4
    expected = set(zip(one[near].tolist(), other[near].tolist(), strict=True))
    looks = noise(4, (8, 8, 1))  # the same for all, so that only the hashes tell them apart
    digests = np.arange(300 * 32).astype(np.uint16).view(np.uint8).reshape(300, -1)[:, :32]
    pairs = duplicates(digests, hashes, lambda places: np.stack([looks] * len(places)), threshold=4)
    assert {(low, high) for low, high, kind in pairs.tolist() if kind == NEAR} == expected
    assert len(pairs) == len(expected)
    assert len(expected) >= 100


def near_hashes(count: int, centres: int, seed: int) -> Array:
    """Hashes u64[count] of up to three bits next to one of some centres."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**63, centres).astype(np.uint64)[rng.integers(0, centres, count)]
    for _ in range(3):
        hashes ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    return hashes


@pytest.mark.parametrize("most", [1, 50, grouping.MOST_PAIRS])
@pytest.mark.parametrize("seed", range(3))
def test_groups_are_those_of_all_pairs_however_few_are_held_at_once(
    most: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "MOST_PAIRS", most)
    hashes = near_hashes(200, 20, seed)
    kinds = np.random.default_rng(seed).integers(0, 3, 200)
    looks = np.stack([noise(kind, (8, 8, 1)) for kind in range(3)])
    digests = np.arange(200 * 32).astype(np.uint16).view(np.uint8).reshape(200, -1)[:, :32]
    pairs = duplicates(digests, hashes, lambda places: looks[kinds[places]], threshold=4)
    one, other = np.triu_indices(200, 1)
    near = np.bitwise_count(hashes[one] ^ hashes[other]) <= 4
    near &= kinds[one] == kinds[other]
    everyone = np.arange(200)
    expected = join_groups(everyone, np.stack([one[near], other[near]], axis=1))
    np.testing.assert_array_equal(join_groups(everyone, pairs), expected)
    assert 20 < len(np.unique(expected)) < 200
    assert (len(pairs) == near.sum()) == (most > 50)


def test_frames_of_a_camera_that_stands_still_do_not_become_all_their_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grouping, "MOST_PAIRS", 1000)
    hashes = near_hashes(500, 1, 0)
    look = noise(4, (8, 8, 1))
    digests = np.arange(500 * 32).astype(np.uint16).view(np.uint8).reshape(500, -1)[:, :32]
    compared: list[int] = []

    def images(places: Array) -> Array:
        compared.append(len(places))
        return np.stack([look] * len(places))

    pairs = duplicates(digests, hashes, images, threshold=6)
    assert len(pairs) < 1000 + 2 * 500
    assert sum(compared) < 20 * 500
    assert not join_groups(np.arange(500), pairs).any()


def test_pairs_join_the_groups_of_both() -> None:
    pairs = np.array([[1, 4, EXACT], [4, 5, NEAR]])
    assert join_groups(np.array([0, 0, 1, 1, 2, 3]), pairs).tolist() == [0, 0, 1, 1, 0, 0]
    assert join_groups(np.arange(3), np.empty((0, 3), np.int64)).tolist() == [0, 1, 2]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=80),
    st.floats(0.05, 0.5),
    st.integers(0, 3),
)
def test_no_group_is_divided_and_each_class_is_on_both_sides_if_it_can_be(
    pictures: list[tuple[int, int]], share: float, seed: int
) -> None:
    labels = np.array([label for label, _ in pictures], np.int32)
    groups = np.array([group for _, group in pictures], np.int64)
    held = held_out(labels, groups, share, seed=seed)
    for group in np.unique(groups):
        assert len(np.unique(held.mask[groups == group])) == 1
    for label in np.unique(labels).tolist():
        inside = held.mask[labels == label]
        alone = [g for g in np.unique(groups) if (labels[groups == g] == label).all()]
        if len(alone) >= 2:
            assert inside.any()
            assert label not in held.lacking
        assert not inside.all()  # something is left to train on


def test_single_pictures_are_held_out_by_the_share_of_each_class() -> None:
    labels = np.repeat(np.array([0, 1, 2], np.int32), [40, 10, 1])
    held = held_out(labels, np.arange(51), 0.2, seed=0)
    assert np.bincount(labels[held.mask], minlength=3).tolist() == [8, 2, 0]
    assert held.lacking == (2,)
    again, other = (held_out(labels, np.arange(51), 0.2, seed=seed).mask for seed in (0, 1))
    np.testing.assert_array_equal(held.mask, again)
    assert not np.array_equal(held.mask, other)


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([17, 17, 17, 17], 10, [3, 3, 2, 2]),
        ([30, 10, 3], 8, [5, 2, 1]),
        ([1000, 2, 2, 2], 5, [2, 1, 1, 1]),
        ([1000, 2, 2, 2], 1002, [999, 1, 1, 1]),
        ([20, 20, 1], 11, [6, 5, 0]),
    ],
)
def test_a_number_of_single_pictures_is_met_in_the_proportion_of_the_classes(
    counts: list[int], size: int, expected: list[int]
) -> None:
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    held = held_out(labels, np.arange(len(labels)), size, seed=0)
    assert np.bincount(labels[held.mask], minlength=len(counts)).tolist() == expected


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_groups_with_pictures_of_all_classes_are_held_out_by_the_share_of_each(
    share: float,
) -> None:
    """200 subjects, each with five pictures of each of ten classes."""
    labels = np.tile(np.repeat(np.arange(10, dtype=np.int32), 5), 200)
    held = held_out(labels, np.repeat(np.arange(200), 50), share, seed=0)
    assert np.bincount(labels[held.mask]).tolist() == [round(share * 1000)] * 10
    assert held.lacking == ()


def test_a_group_of_several_classes_that_holds_all_of_one_is_for_training() -> None:
    """All melanomas are of one patient, who has more nevi."""
    labels = np.array([0] * 20 + [1] * 3 + [0] * 5, np.int32)
    groups = np.array([*range(20), *[99] * 8])
    for seed in range(20):
        held = held_out(labels, groups, 0.3, seed=seed)
        assert not held.mask[groups == 99].any()
        assert held.lacking == (1,)
        assert held.mask[:20].sum() == round(0.3 * 25)
