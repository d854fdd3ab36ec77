"""A user's own pictures: `python -m benchmarks.pictures`.

In one sitting: packing photos beside bare Pillow on all cores; listing many unchanged files again;
how long the second run takes to have its data, beside arrays of as many bytes; an epoch from the
packed copy beside Keras' and PyTorch's loaders on the same network; and the memory of training on a
packed copy many times larger than another. PyTorch is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import RESULTS, show

SIDE = 96
PHOTO = (4000, 3000)  # 12 megapixels
DISTINCT = 24  # photos that are made; the others are copies of their bytes
BATCH = 128
CLASSES = ("cat", "dog")
LEAF: dict[str, Any] = {
    "_target_": "pipeline.data.datasets.folder",
    "size": SIDE,
    "channels": 3,
    "fit": "pad",
    "near_duplicates": None,
    "test_fraction": 0.2,
    "seed": 0,
    "on_bad": "skip",
    "max_bad": 0.1,
} | dict.fromkeys(("classes", "group", "root", "path_column", "label_column", "split_column"), None)


def photos(folder: Path, count: int, size: tuple[int, int] = PHOTO) -> Path:
    """Makes `count` JPEGs like photos, smooth with grain, in two class folders."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(min(count, DISTINCT)):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        pixels += rng.integers(-6, 7, pixels.shape, np.int16)
        path = folder / "made.jpg"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        contents.append(path.read_bytes())
        path.unlink()
    for number in range(count):
        place = folder / CLASSES[number % 2] / f"{number}.jpg"
        place.parent.mkdir(exist_ok=True)
        # A comment at the end makes each file another one, as the checksum sees it.
        place.write_bytes(contents[number % len(contents)] + b"%d" % number)
    return folder


def thumbnails(folder: Path, count: int) -> Path:
    """Makes `count` tiny PNGs in two class folders."""
    for number in range(count):
        place = folder / CLASSES[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number % 256, np.uint8)).save(place)
    return folder


def bare(path: Path) -> int:
    """What no packing can avoid: a reduced decoding and a resize."""
    with Image.open(path) as picture:
        picture.draft(None, (3 * SIDE, 3 * SIDE))
        return len(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS).tobytes())


def ingest(folder: Path, data: Path, **changes: Any) -> Any:
    """Our packed copy of a folder."""
    from pipeline.data import load

    leaf = {**LEAF, "path": str(folder), **changes}
    return load.ingest(leaf, name="folder", data_dir=data)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def packing(place: Path, count: int) -> Iterator[tuple[str, float]]:
    """Packing photos, in pictures per second, beside bare Pillow in one process per core."""
    folder = photos(place / "photos", count)
    files = sorted(folder.rglob("*.jpg"))
    with Pool(os.cpu_count()) as pool:
        pool.map(bare, files[:16])
        seconds = timed(lambda: pool.map(bare, files, chunksize=16))
    yield "bare Pillow, all cores: pictures per second", count / seconds
    ours = timed(lambda: ingest(folder, place / "data"))
    yield "ours, packing: pictures per second", count / ours
    yield "ours / bare Pillow", seconds / ours


def listing(place: Path, count: int) -> Iterator[tuple[str, float]]:
    """Listing many files, unchanged since they were packed."""
    folder = thumbnails(place / "many", count)
    settings = {"size": 8, "channels": 1}
    yield (
        f"packing {count:,} tiny files, s",
        timed(lambda: ingest(folder, place / "data", **settings)),
    )
    again = timed(lambda: ingest(folder, place / "data", **settings))
    yield f"{count:,} files listed again, s", again


def second_run(place: Path) -> Iterator[tuple[str, float]]:
    """The data of a second run in a new process, beside arrays of as many bytes."""
    folder, data = place / "photos", place / "data"
    raw = ingest(folder, data)
    size, shape = len(raw.train.images), list(raw.train.image_shape)
    synthetic = [
        "preprocess=share",
        *("dataset=synthetic", f"dataset.train_size={size * 4 // 5}", "dataset.classes=2"),
        *(f"dataset.test_size={size - size * 4 // 5}", f"dataset.image_shape={shape}"),
    ]
    words = [f"dataset.{key}={_word(value)}" for key, value in LEAF.items() if key[0] != "_"]
    pictures = ["dataset=folder", f"dataset.path={folder}", *words]
    for name, chosen in (("packed pictures", pictures), ("arrays", synthetic)):
        command = [sys.executable, "-m", "pipeline", "preprocess", f"data_dir={data}", *chosen]

        def run(command: list[str] = command) -> None:
            subprocess.run(command, cwd=place, check=True, capture_output=True, env=_environment())

        run()
        yield f"second start from {name}, s", min(timed(run) for _ in range(3))


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


def epochs(place: Path, count: int) -> Iterator[tuple[str, float]]:
    """Seconds per epoch of one small network at 96×96: the median of the last epochs."""
    from pipeline.system.imports import configure_libraries

    configure_libraries()
    import keras

    from pipeline.data.values import Split
    from pipeline.training import loop

    folder = photos(place / "small", count, (2 * SIDE, 2 * SIDE))
    raw = ingest(folder, place / "data")
    everything = Split(images=raw.train.images, labels=np.asarray(raw.index.labels))
    for name, stream in (("ours", None), ("ours, streamed", True)):
        model = _network()
        times = _EpochTimes()
        callbacks = keras.callbacks.CallbackList([times.callback()], model=model, epochs=4)
        empty = everything.select(np.arange(0))
        loop.fit(model, (everything, empty), callbacks, batch_size=BATCH, seed=0, stream=stream)
        yield f"{name}: s per epoch", times.median()
    model = _network(steps=20)
    files = keras.utils.image_dataset_from_directory(
        folder, image_size=(SIDE, SIDE), batch_size=BATCH, verbose=False
    )
    times = _EpochTimes()
    model.fit(files, epochs=4, verbose=0, callbacks=[times.callback()])
    yield "image_dataset_from_directory + fit: s per epoch", times.median()
    try:
        yield "PyTorch DataLoader over the packed copy: s per epoch", _torch(everything)
    except ImportError:
        print("PyTorch is not installed here; its loader is left out")


def _network(steps: int = 1) -> Any:
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    images = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255)(images)
    for channels in (16, 32):
        x = layers.Conv2D(channels, 3, strides=2, activation="relu", padding="same")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(len(CLASSES), activation="softmax")(layers.Flatten()(x))
    model = keras.Model(images, x)
    model.compile("adam", "sparse_categorical_crossentropy", steps_per_execution=steps)
    return model


class _EpochTimes:
    """The times of epochs, of which the first, which compiles, does not count."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def callback(self) -> Any:
        import keras

        return keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: self.ends.append(time.perf_counter())
        )

    def median(self) -> float:
        return float(np.median(np.diff(self.ends)))


def _torch(split: Any) -> float:
    import torch
    from torch import nn

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, place: int) -> Any:
            return torch.from_numpy(np.array(split.take(place))), int(split.labels[place])

    torch.manual_seed(0)
    channels = ((3, 16), (16, 32))
    blocks = [
        [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2)] for a, b in channels
    ]
    net = nn.Sequential(*chain.from_iterable(blocks), nn.Flatten(), nn.LazyLinear(len(CLASSES)))
    loader = torch.utils.data.DataLoader(Rows(), BATCH, shuffle=True, num_workers=0)
    loss, optimizer, ends = nn.CrossEntropyLoss(), None, []
    for _ in range(4):
        for images, labels in loader:
            answers = net(images.permute(0, 3, 1, 2).float() / 255)
            optimizer = optimizer or torch.optim.Adam(net.parameters())
            optimizer.zero_grad()
            loss(answers, labels).backward()
            optimizer.step()
        ends.append(time.perf_counter())
    return float(np.median(np.diff(ends)))


TRAINING = """
import sys
from benchmarks.pictures import trained_memory
print(trained_memory(sys.argv[1], int(sys.argv[2])))
"""


def memory(place: Path, megabytes: int) -> Iterator[tuple[str, float]]:
    """Highest anonymous memory of training on a small packed copy and on a large one."""
    size = SIDE * SIDE * 3
    for name, count in (("small", 2_000), ("large", max(2_000, megabytes * 1_000_000 // size))):
        path = place / f"{name}.npy"
        # Zeros take no room on the disk, and are read as any other bytes.
        np.lib.format.open_memmap(path, "w+", np.uint8, (count, SIDE, SIDE, 3)).flush()
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, str(path), str(int(name == "large"))],
            env=_environment(),
            check=True,
            capture_output=True,
            text=True,
        )
        yield f"{name}, {count * size / 1e6:,.0f} MB: MB of anonymous memory", float(done.stdout)


def trained_memory(path: str, streamed: int) -> float:
    """Trains one epoch on a packed copy; returns the highest anonymous memory in MB."""
    import threading

    import keras

    from pipeline.data.values import Split
    from pipeline.training import loop

    highest = 0.0

    def watch() -> None:
        nonlocal highest
        while True:
            status = Path("/proc/self/status").read_text()
            found = re.search(r"RssAnon:\s+(\d+)", status)
            highest = max(highest, int(found[1]) / 1000 if found else 0.0)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    images = np.load(path, mmap_mode="c")
    images.flags.writeable = False
    data = Split(images=images, labels=(np.arange(len(images)) % 2).astype(np.int32))
    model = _network()
    callbacks = keras.callbacks.CallbackList([], model=model, epochs=1)
    val = data.select(np.arange(len(data) // 10))
    loop.fit(model, (data, val), callbacks, batch_size=BATCH, seed=0, stream=bool(streamed))
    return highest


def main() -> None:
    """Reads the command line and measures everything in one sitting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=300_000)
    parser.add_argument("--small", type=int, default=20_000, help="pictures of the epochs")
    parser.add_argument("--megabytes", type=int, default=20_000, help="of the large packed copy")
    chosen = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for figures in (
            packing(place, chosen.photos),
            second_run(place),
            epochs(place, chosen.small),
            memory(place, chosen.megabytes),
            listing(place, chosen.files),
        ):
            for name, value in figures:
                print(f"{name}: {value:,.3g}", flush=True)
                found[name] = value
    show("Own pictures", ("figure", "value"), [(k, f"{v:,.3g}") for k, v in found.items()])
    RESULTS.mkdir(exist_ok=True)
    settings = vars(chosen) | {"cores": os.cpu_count()}
    kept = json.dumps({"settings": settings, "figures": found}, indent=2)
    (RESULTS / "pictures.json").write_text(kept + "\n")


if __name__ == "__main__":
    main()
