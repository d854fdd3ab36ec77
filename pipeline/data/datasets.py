"""One function per data set, each returning its `RawData`.

The keyword-only parameters are the keys of `conf/dataset/<name>.yaml`, their annotations the
ranges a configuration is checked against. To add a data set, add a function and its YAML file.
The cache rebuilds a data set when its parameters, or files and folders that they name, change; a
data set that reads anything else declares it with `determined_by`. What can be told without reading
the images is checked by a function of its own (`checked_by`), which runs before TensorFlow is
imported and a run begins. A function that returns images leaves its parameter `exclude: Exclude` to
`data/load.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import lazy_loader as lazy
import numpy as np
from pydantic import BeforeValidator, Field

from pipeline.config.rules import Seed, Share, checked_by, idle, one_of, without_validation
from pipeline.data.arrays import cifar_parts, from_cifar, from_idx, from_npz, idx_parts, npz_parts
from pipeline.data.content import determined_by, parameters, stamped
from pipeline.data.exclusion import Exclude, excluded_files
from pipeline.data.listing import Classes, as_texts, listed
from pipeline.data.own_pictures import Division, Pictures
from pipeline.data.packing import Packing
from pipeline.data.pictures import FITS
from pipeline.data.sources import IdxDataset, downloaded, require_source, retrieve
from pipeline.data.values import Array, RawData, Split
from pipeline.system.errors import RequestError

sklearn = lazy.load("sklearn")  # takes a second, too long for the check of a configuration

SideLength = Annotated[int, Field(ge=4, le=512)]
Channels = Annotated[int, Field(ge=1, le=4)]

FASHION_MNIST = IdxDataset(
    checksums={
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    system_folder=Path("/usr/share/datasets/fashion-mnist"),
    debian_package="dataset-fashion-mnist",
)
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

MNIST = IdxDataset(
    checksums={
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    mirrors=(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
)
DIGIT_CLASSES = tuple("0123456789")


_with_own_files = idle(
    "download",
    when=lambda leaf: leaf.get("path") is not None or leaf.get("folder") is not None,
    because="beside dataset.path or dataset.folder, whose files are read",
    mend="leave it out, or name no files",
    nothing=(False,),
)


@without_validation
# The same content, wherever the files come from
@determined_by(lambda _: dict(FASHION_MNIST.checksums))
@checked_by(lambda folder, download, **_: require_source(FASHION_MNIST, folder, download=download))
@_with_own_files
def fashion_mnist(*, folder: str | None, download: bool, exclude: Exclude = None) -> RawData:
    """Fashion-MNIST: 60,000 + 10,000 images u8[N,28,28,1] of ten kinds of clothing.

    Raises:
        RequestError: `folder` lacks a file or holds a damaged one; no source has the files.
    Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747 (2017).
    """
    return _from_idx(FASHION_MNIST, FASHION_MNIST_CLASSES, folder=folder, download=download)


@without_validation
@determined_by(lambda _: dict(MNIST.checksums))
@checked_by(lambda folder, download, **_: require_source(MNIST, folder, download=download))
@_with_own_files
def mnist(*, folder: str | None, download: bool, exclude: Exclude = None) -> RawData:
    """MNIST: 60,000 + 10,000 images u8[N,28,28,1] of handwritten digits.

    Raises:
        RequestError: `folder` lacks a file or holds a damaged one; no source has the files.
    Source: Y. LeCun et al., Proc. IEEE 86(11), 2278–2324 (1998).
    """
    return _from_idx(MNIST, DIGIT_CLASSES, folder=folder, download=download)


@without_validation
@determined_by(parameters)
def digits(
    *,
    test_fraction: Annotated[float, Field(ge=0.01, le=0.9)],
    seed: Seed,
    exclude: Exclude = None,
) -> RawData:
    """scikit-learn's bundled handwritten digits: 1,797 images u8[N,8,8,1], split by class.

    Its values 0–16 become 0–255.
    Source: E. Alpaydin, C. Kaynak, UCI repository, optical recognition of digits (1998).
    """
    bunch = sklearn.datasets.load_digits()
    images = np.rint(bunch.images[..., np.newaxis] * (255 / 16)).astype(np.uint8)
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(images)), test_size=test_fraction, stratify=bunch.target, random_state=seed
    )
    return RawData(
        train=_split(images[train], bunch.target[train]),
        test=_split(images[test], bunch.target[test]),
        class_names=DIGIT_CLASSES,
        source="scikit-learn",
    )


def _check_synthetic(*, train_size: int, test_size: int, classes: int, **_: Any) -> None:
    if min(train_size, test_size) < classes:
        raise RequestError(
            f"dataset.train_size and dataset.test_size must be at least dataset.classes={classes}"
        )


@without_validation
@determined_by(parameters)
@checked_by(_check_synthetic)
def synthetic(  # noqa: PLR0913 (the keys of its file)
    *,
    train_size: Annotated[int, Field(ge=10)],
    test_size: Annotated[int, Field(ge=10)],
    classes: Annotated[int, Field(ge=2, le=1000)],
    image_shape: tuple[SideLength, SideLength, Channels],
    noise: Annotated[float, Field(ge=0, le=255)],
    seed: Seed,
    exclude: Exclude = None,
) -> RawData:
    """Generated images u8[N,H,W,C]: one coarse random pattern per class, plus Gaussian noise.

    `noise` is the standard deviation of the noise in pixel values. Class sizes differ by one image
    at most. Each patch of the 4×4 pattern spans many pixels, so that convolutions can detect it.

    Raises:
        RequestError: a split is too small to hold an image of each class.
    """
    rng = np.random.default_rng(seed)
    height, width, channels = image_shape
    coarse = rng.uniform(0, 255, (classes, 4, 4, channels))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    patterns = coarse[:, rows][:, :, columns]

    def sample(size: int) -> Split:
        labels = rng.permutation(np.arange(size) % classes)
        images = patterns[labels] + rng.normal(0, noise, (size, height, width, channels))
        return _split(np.clip(np.rint(images), 0, 255).astype(np.uint8), labels)

    return RawData(
        train=sample(train_size),
        test=sample(test_size),
        class_names=tuple(f"class_{index}" for index in range(classes)),
        source="generated from dataset.seed",
    )


ClassNames = Annotated[list[str], BeforeValidator(as_texts), Field(min_length=2)]


def _of_files(given: Mapping[str, Any]) -> Any:
    """The key of the content: the parameters, and the states of the files that `path` names.

    The other texts name classes and files within: what is called like them elsewhere is no part.
    """
    return {**given, "path": stamped(given["path"])}


def _check_idx(*, path: str | None, prefix: str | None, **_: Any) -> None:
    idx_parts(_required(path, "the folder or archive of the IDX files"), prefix=prefix)


@determined_by(_of_files)
@checked_by(_check_idx)
def idx(
    *,
    path: str | None,
    prefix: str | None,
    transpose: bool | None,
    class_names: ClassNames | None,
    exclude: Exclude = None,
) -> RawData:
    """A data set of IDX files, as MNIST, KMNIST, EMNIST and their like: images u8[N,H,W,C].

    Raises:
        RequestError: a file is missing or damaged, or files do not fit together.
    """
    assert path is not None
    return from_idx(path, prefix=prefix, transpose=transpose, class_names=class_names)


@determined_by(_of_files)
@checked_by(lambda path, **_: npz_parts(_required(path, "a .npz file")))
def npz(*, path: str | None, class_names: ClassNames | None, exclude: Exclude = None) -> RawData:
    """A data set in a `.npz` file, with arrays named as Keras or MedMNIST do: u8[N,H,W,C].

    Raises:
        RequestError: an array is missing, damaged, holds Python objects or has a wrong shape.
    """
    assert path is not None
    return from_npz(path, class_names=class_names)


CIFAR10 = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR100 = (
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)


@without_validation
@determined_by(lambda given: _of_archive(given, CIFAR10))
@checked_by(lambda path, download, **_: _check_cifar(path, None, CIFAR10, download=download))
@_with_own_files
def cifar10(*, path: str | None, download: bool, exclude: Exclude = None) -> RawData:
    """CIFAR-10: 50,000 + 10,000 colour images u8[N,32,32,3] of ten kinds of things.

    Raises:
        RequestError: the archive cannot be obtained, or is damaged.
    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
    """
    return _cifar(path, None, CIFAR10)


@without_validation
@determined_by(lambda given: _of_archive(given, CIFAR100))
@checked_by(
    lambda path, download, labels, **_: _check_cifar(
        path, labels == "fine", CIFAR100, download=download
    )
)
@_with_own_files
def cifar100(
    *,
    path: str | None,
    download: bool,
    labels: Annotated[str, one_of("fine", "coarse")],
    exclude: Exclude = None,
) -> RawData:
    """CIFAR-100: 50,000 + 10,000 colour images u8[N,32,32,3] of 100 fine or 20 coarse classes.

    Raises:
        RequestError: the archive cannot be obtained, or is damaged.
    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
    """
    return _cifar(path, labels == "fine", CIFAR100)


@idle(
    "max_bad",
    when=lambda leaf: leaf["on_bad"] == "refuse",
    because="with dataset.on_bad=refuse, which accepts no bad file",
    mend="leave it out, or set dataset.on_bad=skip",
    nothing=(0,),
)
def folder(  # noqa: PLR0913 (the keys of its file)
    *,
    # Which pictures: see `listing.listed`.
    path: str | None,
    root: str | None,
    classes: Classes,
    path_column: str | None,
    label_column: str | None,
    split_column: str | None,
    exclude: Exclude = None,
    # What an image of them is: see `packing.Packing`.
    size: SideLength | tuple[SideLength, SideLength] | None,
    channels: Literal[1, 3] | None,
    fit: Annotated[str, one_of(*FITS)],
    # What becomes of files that cannot be read.
    on_bad: Annotated[str, one_of("skip", "refuse")],
    max_bad: Share,
    # How they are divided: see `own_pictures.Division`.
    group: str | None,
    near_duplicates: Annotated[int, Field(ge=0, le=10)] | None,
    test_fraction: Annotated[float, Field(ge=0.01, le=0.9)],
    seed: Seed,
) -> Pictures:
    """A user's own pictures: u8[N,H,W,C] of any folder, archive or list (`data/listing.py`).

    Raises:
        RequestError: there is no data set; the message says what was found and what to type.
    """
    listing = listed(
        _required(path, "a folder, an archive or a list of the pictures"),
        classes=classes,
        root=root,
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
        max_bad=0.0 if on_bad == "refuse" else max_bad,
    )
    return Pictures(
        listing=listing,
        packing=Packing(
            size=(size, size) if isinstance(size, int) else size and (size[0], size[1]),
            channels=channels,
            fit=fit,
        ),
        division=Division(
            group=group, near_duplicates=near_duplicates, test_fraction=test_fraction, seed=seed
        ),
        on_bad=on_bad,
        max_bad=max_bad,
        exclusion=None
        if exclude is None
        else excluded_files(exclude, listing.files, str(listing.root)),
    )


def _required(path: str | None, what: str) -> str:
    if not path:
        raise RequestError(f"dataset.path is missing: {what}; type dataset.path=…")
    return path


def _of_archive(given: Mapping[str, Any], published: tuple[str, str]) -> Any:
    """The key of the content: checksum of the published archive, or states of the user's files."""
    if given["path"] is None:
        return [published[1], given.get("labels")]
    return _of_files({name: value for name, value in given.items() if name != "download"})


def _check_cifar(
    path: str | None, fine: bool | None, published: tuple[str, str], *, download: bool
) -> None:
    if path is not None:
        cifar_parts(path, fine=fine)
    elif not download:
        raise RequestError(
            "dataset.download=false, and dataset.path is missing: it names the published archive, "
            f"{published[0].rpartition('/')[2]}, or its folder"
        )


def _cifar(path: str | None, fine: bool | None, published: tuple[str, str]) -> RawData:
    if path is not None:
        return from_cifar(path, fine=fine)
    address, checksum = published
    with downloaded(address, checksum) as archive:
        return from_cifar(str(archive), fine=fine, source=address)


def _from_idx(
    dataset: IdxDataset, class_names: tuple[str, ...], *, folder: str | None, download: bool
) -> RawData:
    found = retrieve(dataset, folder=folder, download=download)
    train_images, train_labels, test_images, test_labels = found.arrays.values()
    return RawData(
        train=_split(train_images[..., np.newaxis], train_labels),
        test=_split(test_images[..., np.newaxis], test_labels),
        class_names=class_names,
        source=found.source,
    )


def _split(images: Array, labels: Array) -> Split:
    return Split(images=images, labels=labels.astype(np.int32))
