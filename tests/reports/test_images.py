from __future__ import annotations

import base64
import io
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.data.values import BLOCK_BYTES, Array, Predictions, Split
from pipeline.reports.images import (
    MISTAKES,
    MOST_A_CELL,
    THUMBNAIL_BYTES,
    Sprite,
    confusion,
    data_uri,
    smaller,
)


def predictions(
    labels: list[int],
    guesses: list[int],
    sure: list[float],
    images: Array | None = None,
    names: tuple[str, ...] = ("a", "b", "c"),
) -> Predictions:
    probabilities = np.zeros((len(labels), len(names)), np.float32)
    probabilities[np.arange(len(labels)), guesses] = sure
    if images is None:
        images = np.arange(len(labels)).astype(np.uint8).reshape(-1, 1, 1, 1)
        images = np.broadcast_to(images, (len(labels), 2, 3, 1)).copy()
    return Predictions(
        split=Split(images=images, labels=np.array(labels, np.int32)),
        probabilities=probabilities,
        class_names=names,
    )


#           image:         0    1    2    3    4    5
MADE = predictions([0, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 0], [0.5, 0.6, 0.9, 0.7, 0.6, 0.8])


def picture(sprite: Sprite) -> Array:
    content = base64.b64decode(sprite.uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)))


def tile(sprite: Sprite, place: int) -> Array:
    y, x = divmod(place, sprite.columns)
    rows = slice(y * sprite.height, (y + 1) * sprite.height)
    return picture(sprite)[rows, x * sprite.width : (x + 1) * sprite.width]


def test_a_cell_counts_its_images_and_their_share_of_the_true_class() -> None:
    rows = confusion(MADE).rows
    assert [[cell.count for cell in row] for row in rows] == [[2, 1, 0], [2, 1, 0], [0, 0, 0]]
    assert [cell.share for cell in rows[0]] == pytest.approx([2 / 3, 1 / 3, 0])
    assert [cell.right for cell in rows[1]] == [False, True, False]
    assert (rows[1][0].true, rows[1][0].guess) == ("b", "a")
    assert rows[1][0].level == 1  # the darkest of the mistakes
    assert rows[0][0].level == 0.667
    assert all(cell.share == 0 for cell in rows[2])  # a class without images


def test_the_thumbnails_of_a_cell_lie_together_the_surest_first() -> None:
    found = confusion(MADE)
    numbers = [index for index, _ in found.sprite.captions]
    cells = {(c.true, c.guess): numbers[c.first : c.first + c.kept] for r in found.rows for c in r}
    assert cells["a", "a"] == [2, 0]
    assert cells["a", "b"] == [1]
    assert cells["b", "a"] == [5, 4]
    assert cells["b", "b"] == [3]
    assert cells["c", "a"] == []
    assert found.sprite.captions[0] == (2, "90.0")


def test_a_thumbnail_is_the_image_as_ink_on_paper() -> None:
    sprite = confusion(MADE).sprite
    assert (sprite.width, sprite.height, sprite.grey, sprite.zoom) == (3, 2, True, 20)
    for place, (index, _) in enumerate(sprite.captions):
        np.testing.assert_array_equal(tile(sprite, place), 255 - MADE.split.images[index, :, :, 0])


def test_grey_images_without_a_dark_border_are_shown_as_they_are() -> None:
    images = 255 - MADE.split.images
    sprite = confusion(
        predictions(MADE.labels.tolist(), MADE.predicted.tolist(), [0.5] * 6, images)
    ).sprite
    assert not sprite.grey
    assert tile(sprite, 0).min() > 240


def test_colours_are_kept() -> None:
    images = np.zeros((6, 32, 32, 3), np.uint8)
    images[:] = [200, 40, 20]
    made = predictions(MADE.labels.tolist(), MADE.predicted.tolist(), [0.5] * 6, images)
    sprite = confusion(made).sprite
    assert not sprite.grey
    np.testing.assert_allclose(tile(sprite, 0)[16, 16], [200, 40, 20], atol=6)


@pytest.mark.parametrize(("channels", "grey"), [(1, True), (2, True), (4, False)])
def test_images_of_any_number_of_channels_have_thumbnails(channels: int, grey: bool) -> None:
    images = np.full((6, 5, 4, channels), 9, np.uint8)
    made = predictions(MADE.labels.tolist(), MADE.predicted.tolist(), [0.5] * 6, images)
    assert confusion(made).sprite.grey is grey


def test_images_are_called_by_their_numbers() -> None:
    found = confusion(replace(MADE, numbers=np.arange(10, 16)))
    assert [one.image for one in found.mistakes] == [15, 11, 14]
    assert found.sprite.captions[0][0] == 12


def test_a_confidence_that_is_not_full_is_not_shown_as_such() -> None:
    sure = confusion(predictions([0, 0], [0, 1], [0.9996, 1.0]))
    assert [said for _, said in sure.sprite.captions[:2]] == [">99.9", "100.0"]


def test_the_mistakes_are_the_surest_of_all_with_their_own_thumbnails() -> None:
    found = confusion(MADE)
    assert [(m.image, m.true, m.guess) for m in found.mistakes] == [
        (5, "b", "a"),
        (1, "a", "b"),
        (4, "b", "a"),
    ]
    assert found.wrong == 3
    for mistake in found.mistakes:
        assert found.sprite.captions[mistake.thumbnail][0] == mistake.image


def test_the_largest_confusions_come_first() -> None:
    assert [(c.true, c.guess, c.count) for c in confusion(MADE).largest] == [
        ("b", "a", 2),
        ("a", "b", 1),
    ]


def test_of_many_classes_the_matrix_has_those_with_the_most_mistakes() -> None:
    labels = [*range(200), *[150] * 3]
    guesses = [label + (label % 4 == 1) for label in range(200)] + [9] * 3
    names = tuple(map(str, range(200)))
    found = confusion(predictions(labels, guesses, [0.5] * 203, names=names))
    assert found.names[:3] == ["1", "2", "5"]
    assert len(found.names) == len(found.rows) == len(found.rows[0]) == 50
    most = found.largest[0]
    assert (most.true, most.guess, most.count) == ("150", "9", 3)
    shown = found.sprite.captions[most.first : most.first + most.kept]
    assert sorted(index for index, _ in shown) == [200, 201, 202]


def test_a_full_cell_keeps_its_surest() -> None:
    sure = np.linspace(0.5, 1, 100).tolist()
    found = confusion(predictions([0] * 100, [1] * 100, sure))
    cell = found.rows[0][1]
    assert (cell.count, cell.kept) == (100, MOST_A_CELL)
    shown = [i for i, _ in found.sprite.captions[cell.first : cell.first + cell.kept]]
    assert shown == list(range(99, 99 - MOST_A_CELL, -1))
    assert len(found.mistakes) == MISTAKES


def test_what_all_cells_have_stays_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 3, (2, 900)).tolist()
    images = np.zeros((900, 64, 64, 3), np.uint8)
    sprite = confusion(predictions(labels, guesses, [0.5] * 900, images)).sprite
    assert (sprite.width, sprite.height) == (64, 64)
    assert (
        0.9 * THUMBNAIL_BYTES < (len(sprite.captions) - MISTAKES) * 64 * 64 * 3 <= THUMBNAIL_BYTES
    )


def test_large_images_become_thumbnails_that_keep_their_shape() -> None:
    images = np.full((6, 200, 100, 3), 77, np.uint8)
    made = predictions(MADE.labels.tolist(), MADE.predicted.tolist(), [0.5] * 6, images)
    sprite = confusion(made).sprite
    assert (sprite.width, sprite.height, sprite.zoom) == (32, 64, 1)
    np.testing.assert_allclose(tile(sprite, 0), 77, atol=2)


def peak_bytes(made: Predictions) -> int:
    """The memory that a confusion matrix takes beside its predictions."""
    tracemalloc.start()
    try:
        confusion(made)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_images_are_not_all_in_memory_to_become_thumbnails() -> None:
    count, shape = 220, (512, 512, 3)
    labels = [*range(count // 20)] * 20
    images = np.broadcast_to(np.uint8(0), (count, *shape))
    names = tuple(map(str, range(count)))
    assert peak_bytes(predictions(labels, labels, [0.5] * count, images, names)) < 3 * BLOCK_BYTES


def test_the_cells_without_images_take_no_memory() -> None:
    names = tuple(map(str, range(3000)))
    made = predictions([0, 1, 2999], [0, 2, 5], [0.5] * 3, names=names)
    assert peak_bytes(made) < 8 * 3000**2 / 4


def test_the_cells_of_many_classes_get_one_small_thumbnail_each() -> None:
    classes, n = 100, 20_000
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n).astype(np.int32)
    made = Predictions(
        split=Split(images=np.broadcast_to(np.uint8(0), (n, 64, 64, 3)), labels=labels),
        probabilities=rng.random((n, classes), np.float32),
        class_names=tuple(str(number) for number in range(classes)),
    )
    found = confusion(made)
    shown = {(cell.true, cell.guess): cell for row in found.rows for cell in row}
    shown |= {(cell.true, cell.guess): cell for cell in found.largest}
    kept = sum(cell.kept for cell in shown.values())
    assert kept == len(found.sprite.captions) - MISTAKES
    assert kept == sum(cell.count > 0 for cell in shown.values())
    assert max(found.sprite.width, found.sprite.height) == 16


def test_a_picture_of_the_weights_becomes_smaller_and_stays_what_it_is() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 1320, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png")
    small = smaller(buffer.getvalue())
    assert Image.open(io.BytesIO(small)).size == (1100, 500)
    assert len(small) < len(buffer.getvalue()) / 4


def test_a_data_uri_holds_the_bytes() -> None:
    assert data_uri(b"abc", "png") == "data:image/png;base64,YWJj"
