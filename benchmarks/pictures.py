"""Measures own pictures: `python -m benchmarks.pictures`, or parts of it (`… packing epochs`).

In one sitting: packing photos, compared with bare Pillow on all cores; loading the data in a second
run, compared with Fashion-MNIST at as many bytes; an epoch from the packed copy, compared with
Keras' and PyTorch's loaders on the same network; the memory of training on a packed copy many times
larger than another; and listing many unchanged files again. Contenders take turns; ratios are
medians over the turns, of seconds and of processor time. PyTorch is left out if it is not
installed.

For the memory under a limit: `systemd-run --scope -p MemoryMax=1G python -m benchmarks.pictures
memory --megabytes 10000`.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from itertools import chain
from multiprocessing import Pool, get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.report import keep, show

SIDE = 96
PHOTO, PICTURE = (4000, 3000), (500, 375)  # of 12 megapixels, and as on web pages
DISTINCT = 24  # different photos; the others are further names of them, each decoded again
FASHION_MNIST = 70_000 * 28 * 28  # bytes of its images
BATCH = 128
EPOCHS = 3  # per turn; the first, which compiles, does not count
FUSED_STEPS = 20  # steps of Keras' `fit` per return to Python
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

Cost = tuple[float, float]  # seconds, and seconds of the processors
Figures = Iterator[tuple[str, float]]


def photos(folder: Path, count: int, size: tuple[int, int] = PHOTO) -> Path:
    """Makes `count` JPEGs like photos, smooth with grain, in two class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / CLASSES[number % 2] / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        if number < DISTINCT:
            coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
            pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
            pixels += rng.integers(-6, 7, pixels.shape, np.int16)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place, quality=90)
        else:  # DISTINCT is even: the class stays
            place.hardlink_to(place.with_name(f"{number % DISTINCT}.jpg"))
    return folder


def thumbnails(folder: Path, count: int) -> Path:
    """Makes `count` tiny PNGs in two class folders."""
    for number in range(count):
        place = folder / CLASSES[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number % 256, np.uint8)).save(place)
    return folder


def bare(path: Path) -> int:
    """The least that packing needs: a reduced decoding and a resize."""
    with Image.open(path) as picture:
        picture.draft(None, (3 * SIDE, 3 * SIDE))
        return len(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS).tobytes())


def ingest(folder: Path, data: Path, **changes: Any) -> Any:
    """Our packed copy of a folder."""
    from pipeline.data import load

    leaf = {**LEAF, "path": str(folder), **changes}
    return load.ingest(replace(_configured(), dataset=leaf, data_dir=str(data)))


@cache
def _configured() -> Any:
    from pipeline import compose

    return compose("dataset=folder", f"dataset.path={Path.cwd()}")


def cost(work: Callable[[], Any]) -> Cost:
    """The cost of some work, including processes that it waits for."""

    def processors() -> float:
        used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(one.ru_utime + one.ru_stime for one in used)

    started, before = time.perf_counter(), processors()
    work()
    return time.perf_counter() - started, processors() - before


def in_turns(contenders: Mapping[str, Callable[[], Cost]], turns: int) -> Figures:
    """Median seconds of contenders measured in turns, and the ratios of the first to the others."""
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, measure in contenders.items():
            costs[name].append(measure())
    first, *others = costs
    for name, of in costs.items():
        seconds, processors = np.median(of, axis=0).tolist()
        yield f"{name}: s", seconds
        yield f"{name}: s of processors", processors
    for name in others:
        ratios = np.array(costs[first]) / np.array(costs[name])
        seconds, processors = np.median(ratios, axis=0).tolist()
        yield f"{first} / {name}", seconds
        yield f"{first} / {name}, processor time", processors


def packing(place: Path, chosen: argparse.Namespace) -> Figures:
    """Packing photos, beside bare Pillow in one process per core."""
    folder = photos(place / "photos", chosen.photos)
    files = sorted(folder.rglob("*.jpg"))
    yield "MB per photo", float(np.mean([file.stat().st_size for file in files]) / 1e6)

    def bare_pillow() -> None:
        with Pool(os.cpu_count()) as pool:
            pool.map(bare, files, chunksize=8)
            pool.close()
            pool.join()

    def ours() -> Cost:
        shutil.rmtree(place / "packed", ignore_errors=True)
        return cost(lambda: ingest(folder, place / "packed"))

    contenders = {f"bare Pillow, {len(files):,} photos": lambda: cost(bare_pillow), "packing": ours}
    yield from in_turns(contenders, chosen.turns)


def second_run(place: Path, chosen: argparse.Namespace) -> Figures:
    """Loads the data of a second run in a new process, compared with arrays of as many bytes."""
    folder = photos(place / "as many", FASHION_MNIST // (SIDE * SIDE * 3), (2 * SIDE, 2 * SIDE))
    words = [f"dataset.{key}={_word(value)}" for key, value in LEAF.items() if key[0] != "_"]
    ours = ["dataset=folder", f"dataset.path={folder}", *words]

    def start(words: list[str]) -> Cost:
        command = [sys.executable, "-m", "pipeline", "preprocess", f"data_dir={place}", *words]

        def run() -> None:
            subprocess.run(command, cwd=place, check=True, capture_output=True, env=_environment())

        return cost(run)

    contenders = {
        "second start, packed pictures": lambda: start(ours),
        "second start, Fashion-MNIST": lambda: start(["dataset=fashion_mnist"]),
    }
    start(ours)
    start(["dataset=fashion_mnist"])
    yield from in_turns(contenders, chosen.turns)


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


def epochs(place: Path, chosen: argparse.Namespace) -> Figures:
    """An epoch of a small network at 96×96, from the packed copy and with other loaders."""
    from pipeline.libraries import configure_libraries

    configure_libraries()
    import keras

    from pipeline.training import loop

    folder = photos(place / "small", chosen.small, PICTURE)
    everything = _everything(folder, place / "data")
    empty = everything.select(np.arange(0))

    def ours(*, stream: bool) -> Cost:
        model, clock = _network(), _Clock()
        calls = keras.callbacks.CallbackList([clock.callback()], model=model, epochs=EPOCHS)
        loop.fit(model, (everything, empty), calls, batch_size=BATCH, seed=0, stream=stream)
        return clock.median()

    def fitted(*, cached: bool) -> Cost:
        model, clock = _network(FUSED_STEPS), _Clock()
        files = keras.utils.image_dataset_from_directory(
            folder, image_size=(SIDE, SIDE), batch_size=BATCH, verbose=False
        )
        files = (files.cache() if cached else files).prefetch(4)
        model.fit(files, epochs=EPOCHS, verbose=0, callbacks=[clock.callback()])
        return clock.median()

    contenders: dict[str, Callable[[], Cost]] = {
        "epoch": lambda: ours(stream=False),
        "epoch, streamed": lambda: ours(stream=True),
        "epoch, image_dataset_from_directory + fit": lambda: fitted(cached=False),
        "epoch, the same, cached in memory": lambda: fitted(cached=True),
    }
    if find_spec("torch") is None:
        print("PyTorch is not installed here; its loader is left out")
    else:
        for name, whole in (("DataLoader", False), ("DataLoader, by batch", True)):
            work = partial(_torch, folder, place / "data", whole=whole)
            contenders[f"epoch, PyTorch {name}"] = partial(_in_new_process, work)
    yield from in_turns(contenders, chosen.turns)


def _everything(folder: Path, data: Path) -> Any:
    """All pictures of a folder, packed, as one split."""
    from pipeline.data.values import Split

    raw = ingest(folder, data)
    return Split(images=raw.train.images, labels=np.asarray(raw.index.labels))


def _in_new_process(work: Callable[[], Cost]) -> Cost:
    """Does some work where TensorFlow is not imported, beside which PyTorch crashes."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work)


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


class _Clock:
    """The times at which epochs end; the first epoch, which compiles, does not count."""

    def __init__(self) -> None:
        self.ends: list[Cost] = []

    def tick(self) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def callback(self) -> Any:
        import keras

        return keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self.tick())

    def median(self) -> Cost:
        seconds, processors = np.median(np.diff(self.ends, axis=0), axis=0).tolist()
        return seconds, processors


def _torch(folder: Path, data: Path, *, whole: bool) -> Cost:
    """With `whole`, the data set gives batches, which PyTorch's loader supports too."""
    import torch
    from torch import nn

    split = _everything(folder, data)

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(split)

        def __getitem__(self, places: Any) -> Any:
            return torch.from_numpy(np.array(split.take(places))), split.labels[places]

    torch.manual_seed(0)
    channels = ((3, 16), (16, 32))
    blocks = [
        [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2)] for a, b in channels
    ]
    net = nn.Sequential(*chain.from_iterable(blocks), nn.Flatten(), nn.LazyLinear(len(CLASSES)))
    net(torch.zeros(1, 3, SIDE, SIDE))  # determines the number of inputs of the last layer
    net = net.to(memory_format=torch.channels_last)
    rows, random = Rows(), torch.utils.data.RandomSampler(range(len(split)))
    if whole:
        batches = torch.utils.data.BatchSampler(random, BATCH, drop_last=False)
        loader = torch.utils.data.DataLoader(rows, sampler=batches, batch_size=None)
    else:
        loader = torch.utils.data.DataLoader(rows, BATCH, sampler=random)
    loss, optimizer, clock = nn.CrossEntropyLoss(), None, _Clock()
    for _ in range(EPOCHS):
        for images, labels in loader:
            answers = net(images.permute(0, 3, 1, 2).float() / 255)
            optimizer = optimizer or torch.optim.Adam(net.parameters())
            optimizer.zero_grad()
            loss(answers, torch.as_tensor(labels).long()).backward()
            optimizer.step()
        clock.tick()
    return clock.median()


TRAINING = """
import sys
from benchmarks.pictures import trained_memory
print(trained_memory(sys.argv[1], int(sys.argv[2])))
"""


def memory(place: Path, chosen: argparse.Namespace) -> Figures:
    """Highest anonymous memory of training on a small packed copy and on a large one."""
    from pipeline.system.processes import memory_limit

    size = SIDE * SIDE * 3
    yield "memory limit, MB", memory_limit() / 1e6
    for name, count in (("small", 2_000), ("large", chosen.megabytes * 1_000_000 // size)):
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


def listing(place: Path, chosen: argparse.Namespace) -> Figures:
    """Listing many files, unchanged since they were packed."""
    folder = thumbnails(place / "many", chosen.files)

    def work() -> Cost:
        return cost(lambda: ingest(folder, place / "data", size=8, channels=1))

    yield f"packing {chosen.files:,} tiny files, s", work()[0]
    again = np.median([work() for _ in range(3)], axis=0)
    yield f"{chosen.files:,} files listed again, s", float(again[0])
    yield f"{chosen.files:,} files listed again, s of a processor", float(again[1])


MEASURED: dict[str, Callable[[Path, argparse.Namespace], Figures]] = {
    one.__name__: one for one in (packing, second_run, epochs, memory, listing)
}


def main() -> None:
    """Reads the command line and measures everything in one sitting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*MEASURED, []], default=[*MEASURED])
    parser.add_argument("--photos", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=300_000)
    parser.add_argument("--small", type=int, default=20_000, help="pictures of the epochs")
    parser.add_argument("--megabytes", type=int, default=20_000, help="of the large packed copy")
    parser.add_argument("--turns", type=int, default=5, help="in which contenders are measured")
    chosen = parser.parse_args()
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.what:
            place = Path(folder) / name
            place.mkdir()
            for figure, value in MEASURED[name](place, chosen):
                print(f"{figure}: {value:,.3g}", flush=True)
                found[figure] = value
    show("Own pictures", ("figure", "value"), [(k, f"{v:,.3g}") for k, v in found.items()])
    keep("pictures", "Own pictures", None, settings=vars(chosen), figures=found)


if __name__ == "__main__":
    main()
