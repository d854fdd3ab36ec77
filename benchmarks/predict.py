"""Measures images on disk to rows on disk, and Keras on arrays: `python -m benchmarks.predict`.

A one-epoch run trains and saves the model, which is loaded from the tracking store. Ours is what
`python -m pipeline predict` does after that: read images (one `.npy` file, or one PNG file per
image), decide on inversion, predict, write one row per image. It is compared with Keras' `predict`
on the same images as an array in memory, which reads and writes nothing. After a warm-up they take
turns in one process, with TensorFlow's own settings and no progress bars. Medians are reported.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.inference import in_turns
from benchmarks.report import publish
from benchmarks.whole_run import finished, plain_arrays, store, warmed

WARM_UP = 1  # turns
REFERENCE = "ours: one .npy to CSV"
BATCH_SIZE = 1024  # that of conf/predict


def main() -> None:
    """Reads the command line, measures and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [*warmed(arguments.dataset, folder), f"model={arguments.model}", "train.epochs=1"]
        run = finished(command, folder)
        images = np.load(plain_arrays(arguments.dataset, folder) / "test_images.npy")[
            : arguments.images
        ]
        ways = _ways(run.result["model_uri"], store(folder), images, Path(folder))
        measured = in_turns(ways, arguments.repeats, warm_up=WARM_UP)
    title = f"Seconds to classify {len(images):,} images by the saved {arguments.model}"
    publish("predict", title, measured, reference=REFERENCE, images=len(images))


def _ways(
    uri: str, tracking_uri: str, images: np.ndarray, folder: Path
) -> dict[str, Callable[[], object]]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    import keras

    from pipeline.config.schema import Tracking
    from pipeline.data.files import find_files
    from pipeline.data.reading import read_blocks
    from pipeline.system.files import replacing
    from pipeline.tracking.models import load_model
    from pipeline.verbs.predict.command import classifier
    from pipeline.verbs.predict.writers import WRITERS

    keras.config.disable_interactive_logging()
    loaded = load_model(uri, Tracking(uri=tracking_uri))
    model, classify = loaded.model, classifier(loaded, "auto")
    array, pictures = _saved(images, folder)

    def ours(place: Path, output: str) -> None:
        path, shape = folder / output, loaded.image_shape
        with replacing(path) as partial, WRITERS[path.suffix](partial) as write:
            for block in read_blocks(
                find_files(str(place)).files, shape, at_once=BATCH_SIZE, listener=lambda _: None
            ):
                write(classify(block))

    return {
        REFERENCE: lambda: ours(array, "array.csv"),
        "ours: one .npy to Parquet": lambda: ours(array, "array.parquet"),
        "ours: one .npy to JSON lines": lambda: ours(array, "array.json"),
        "ours: a PNG file an image to CSV": lambda: ours(pictures, "pictures.csv"),
        "Keras predict on the array": lambda: model.predict(images, verbose=0),
        f"Keras predict on it, {BATCH_SIZE:,} at once": lambda: model.predict(
            images, BATCH_SIZE, verbose=0
        ),
    }


def _saved(images: np.ndarray, folder: Path) -> tuple[Path, Path]:
    """The images as one array's file and as a folder of PNG files."""
    array, pictures = folder / "images.npy", folder / "pictures"
    np.save(array, images)
    pictures.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(pictures / f"{number}.png")
    return array, pictures


if __name__ == "__main__":
    main()
