"""Networks: each maps scaled images f32[N,H,W,C] to class probabilities f32[N,K].

To add a model, add a function here and a file in conf/model/. Positional parameters are passed at
run time; keyword-only ones are the keys of the file. Each function builds features f32[N,F], and
one head turns these into probabilities. Only Keras' own layers are used, since others cannot be
loaded again (`training/saved.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pipeline.config.rules import (
    TRAINABLE,
    Count,
    Fraction,
    Positive,
    WholeNumber,
    checked_by,
    idle,
    one_of,
)
from pipeline.data.values import Tensor
from pipeline.system.imports import Lazy

if TYPE_CHECKING:
    import keras
else:
    # Configurations are checked against the signatures below without importing TensorFlow.
    keras = Lazy("keras")

Activation = Annotated[str, one_of("relu", "gelu", "silu", "elu", "leaky_relu", "tanh", "sigmoid")]
Widths = Annotated[list[Count], Field(min_length=1)]

Trainable = Annotated[str, one_of(*TRAINABLE)]
Stem = Annotated[str, one_of("convolutions", "patches")]

# EfficientNet-Lite by variant: factors of width and depth.
LITE = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
# Its stages: blocks, kernel, stride, expansion, channels. Depth leaves the first and last alone.
LITE_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Networks of keras.applications by the pixel values that they expect. Others are left out: ConvNeXt
# and InceptionResNetV2 have layers of their own, which are refused in a saved model, and
# EfficientNet with weights is another network than without.
APPLICATIONS = {
    "signs": (
        *("MobileNet", "MobileNetV2", "InceptionV3", "NASNetMobile", "NASNetLarge", "Xception"),
        *("ResNet50V2", "ResNet101V2", "ResNet152V2"),
    ),
    "bytes": (
        *("MobileNetV3Small", "MobileNetV3Large"),
        *("EfficientNetV2B0", "EfficientNetV2B1", "EfficientNetV2B2", "EfficientNetV2B3"),
        *("EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L"),
    ),
    "standard": ("DenseNet121", "DenseNet169", "DenseNet201"),
    "bgr": ("ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19"),
}
# Scale and offset of a pixel between 0 and 1; the numbers are ImageNet's.
SCALINGS: dict[str, tuple[Any, Any]] = {
    "signs": (2.0, -1.0),
    "bytes": (255.0, 0.0),
    "standard": (
        [1 / 0.229, 1 / 0.224, 1 / 0.225],
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
    ),
    "bgr": (255.0, [-103.939, -116.779, -123.68]),
}
ApplicationName = Annotated[str, one_of(*chain.from_iterable(APPLICATIONS.values()))]
MOST_TOKENS = 1024  # per image: the memory of attention and of a mixer grows with their square
MOST_PATCHES = 14  # along a side, if this module chooses the size of a patch


def linear(images: Tensor, classes: int) -> Tensor:
    """Multinomial logistic regression on the pixels."""
    return _probabilities(keras.layers.Flatten(name="flatten")(images), classes)


def _check_mlp(*, hidden: list[int], residual: bool = False, **_: Any) -> None:
    if residual and all(one != other for one, other in pairwise(hidden)):
        raise ValueError(f"residual needs two equal widths in a row, as in [256,256], not {hidden}")


@checked_by(_check_mlp)
@idle(
    *("activation", "dropout", "batch_norm"),
    when=lambda leaf: not leaf["hidden"],
    because="with model.hidden=[]: it is about hidden layers",
    mend="leave it out, or give the model hidden layers",
    nothing=(0.0, False),
)
def mlp(
    images: Tensor,
    classes: int,
    *,
    hidden: list[Count],
    activation: Activation,
    dropout: Fraction,
    batch_norm: bool = False,
    residual: bool = False,
) -> Tensor:
    """Dense layers of `hidden` widths, each followed by dropout.

    `batch_norm` normalises before the activation; `residual` adds the input of a layer to its
    output where both have the same width. The classic 784–256–128–10 network on 28×28 grey images
    has 235,146 parameters. Kernels are initialized Glorot uniform, Keras' default.

    Raises:
        ValueError: `residual` without two neighbouring widths that are equal.
    """
    layers = keras.layers
    x = layers.Flatten(name="flatten")(images)
    for number, width in enumerate(hidden, start=1):
        before, inside = x, None if batch_norm else activation
        x = layers.Dense(width, activation=inside, name=f"dense_{number}")(x)
        if batch_norm:
            x = layers.BatchNormalization(name=f"norm_{number}")(x)
            x = layers.Activation(activation, name=f"activation_{number}")(x)
        x = layers.Dropout(dropout, name=f"dropout_{number}")(x)
        if residual and number > 1 and before.shape[-1] == width:
            x = layers.Add(name=f"add_{number}")([before, x])
    return _probabilities(x, classes)


def _has_no_filters(leaf: dict[str, Any]) -> bool:
    return not leaf["filters"]


_NO_FILTERS = {
    "because": "with model.filters=[]: it is about convolutions",
    "mend": "leave it out, or give the model filters",
}


@idle("convolutions", when=_has_no_filters, nothing=(1,), **_NO_FILTERS)
@idle("batch_norm", when=_has_no_filters, nothing=(False,), **_NO_FILTERS)
@idle(
    "activation",
    when=lambda leaf: not leaf["filters"] and not leaf["dense"],
    because="with model.filters=[] and model.dense=0, a network without such a layer",
    mend="leave it out, or give the model filters or a dense layer",
)
def cnn(
    images: Tensor,
    classes: int,
    *,
    filters: list[Count],
    dense: WholeNumber,
    activation: Activation,
    dropout: Fraction,
    batch_norm: bool = False,
    convolutions: Count = 1,
) -> Tensor:
    """One block of 3×3 convolutions and 2×2 max pooling per entry of `filters`, then a dense layer.

    A block pools after its first convolution. `batch_norm` normalises each convolution before the
    activation, after the pooling, where it costs least. With `dense=0` there is no dense layer: the
    maps are averaged instead of flattened. Padding allows pooling at every size, so that images of
    any size down to 1×1 work.
    """
    layers = keras.layers
    x = images
    for number, channels in enumerate(filters, start=1):
        for inner in range(1, convolutions + 1):
            name = f"{number}" if inner == 1 else f"{number}_{inner}"
            x = layers.Conv2D(
                channels,
                3,
                padding="same",
                activation=None if batch_norm else activation,
                use_bias=not batch_norm,
                name=f"conv_{name}",
            )(x)
            if inner == 1:
                x = layers.MaxPooling2D(padding="same", name=f"pool_{name}")(x)
            if batch_norm:
                x = layers.BatchNormalization(name=f"norm_{name}")(x)
                x = layers.Activation(activation, name=f"activation_{name}")(x)
    if not dense:
        return _head(x, classes, dropout)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(dense, activation=activation, name="dense_1")(x)
    x = layers.Dropout(dropout, name="dropout_1")(x)
    return _probabilities(x, classes)


def resnet(
    images: Tensor,
    classes: int,
    *,
    widths: Widths,
    blocks: Count,
    stem_stride: Count,
    activation: Activation,
    dropout: Fraction,
) -> Tensor:
    """A residual network with pre-activation: `blocks` blocks of two 3×3 convolutions per width.

    The stem is a 3×3 convolution for small images; `stem_stride` shrinks large ones. Each further
    width halves the size. Source: He et al., "Identity Mappings in Deep Residual Networks", 2016.
    """
    x = _conv(images, widths[0], 3, stem_stride, "stem")
    for name, width, stride in _blocks(widths, [blocks] * len(widths)):
        x = _preactivated(x, width, stride, activation, 0.0, name)
    return _head(_normed(x, activation, "last"), classes, dropout)


def _check_wide_resnet(*, depth: int, **_: Any) -> None:
    if (depth - 4) % 6 or depth < 10:
        raise ValueError(f"depth={depth} is none of 10, 16, 22, 28, … (6n+4)")


@checked_by(_check_wide_resnet)
def wide_resnet(
    images: Tensor,
    classes: int,
    *,
    depth: Count,
    widen: Count,
    stem_stride: Count,
    activation: Activation,
    dropout: Fraction,
) -> Tensor:
    """A shallow and wide residual network, WRN-`depth`-`widen`, with dropout inside its blocks.

    Source: Zagoruyko & Komodakis, "Wide Residual Networks", 2016.

    Raises:
        ValueError: `depth` is not one of 10, 16, 22, … (6n+4).
    """
    blocks = (depth - 4) // 6
    x = _conv(images, 16, 3, stem_stride, "stem")
    for name, width, stride in _blocks([16 * widen, 32 * widen, 64 * widen], [blocks] * 3):
        x = _preactivated(x, width, stride, activation, dropout, name)
    return _head(_normed(x, activation, "last"), classes, 0.0)


def depthwise(
    images: Tensor,
    classes: int,
    *,
    widths: Widths,
    blocks: Count,
    stem_stride: Count,
    activation: Activation,
    dropout: Fraction,
) -> Tensor:
    """Separable convolutions (3×3 per channel, then 1×1), for few parameters.

    A block adds its input to its output where both have the same shape. Source: Howard et al.,
    "MobileNets", 2017.
    """
    x = _normed(_conv(images, widths[0], 3, stem_stride, "stem"), activation, "stem")
    for name, width, stride in _blocks(widths, [blocks] * len(widths)):
        before = x
        x = _depthwise_conv(x, 3, stride, f"{name}_depthwise")
        x = _normed(x, activation, f"{name}_depthwise")
        x = _normed(_conv(x, width, 1, 1, f"{name}_point"), activation, f"{name}_point")
        if before.shape == x.shape:
            x = keras.layers.Add(name=f"{name}_add")([before, x])
    return _head(x, classes, dropout)


_ONE_BLOCK: dict[str, Any] = {
    "because": "on a model of one block, which is never left out",
    "mend": "leave it out, or give the model more blocks",
    "nothing": (0.0,),
}


def _check_convnext(*, widths: list[int], blocks: list[int], **_: Any) -> None:
    if len(blocks) != len(widths):
        raise ValueError(f"blocks={blocks} needs {len(widths)} numbers, one per width of {widths}")


@checked_by(_check_convnext)
@idle("drop_path", when=lambda leaf: sum(leaf["blocks"]) == 1, **_ONE_BLOCK)
def convnext(
    images: Tensor,
    classes: int,
    *,
    widths: Widths,
    blocks: Widths,
    patch: Count,
    drop_path: Fraction,
    dropout: Fraction,
) -> Tensor:
    """A ConvNeXt: 7×7 convolutions per channel and a two-layer network per pixel, residual.

    `blocks` is the number of blocks per width; the stem reads patches of `patch` × `patch` pixels;
    `drop_path` is the share of blocks left out in training, rising linearly from 0. Source: Liu et
    al., "A ConvNet for the 2020s", 2022.

    Raises:
        ValueError: `blocks` and `widths` differ in length.
    """
    layers = keras.layers
    x = layers.Conv2D(widths[0], patch, patch, padding="same", name="stem")(images)
    x = _layer_norm(x, "stem")
    drop = _rising(drop_path, sum(blocks))
    for name, width, stride in _blocks(widths, blocks):
        if width != x.shape[-1] or stride > 1:
            x = layers.Conv2D(width, 2, stride, padding="same", name=f"{name}_down")(
                _layer_norm(x, f"{name}_down")
            )
        y = layers.DepthwiseConv2D(7, padding="same", name=f"{name}_depthwise")(x)
        y = _perceptron(_layer_norm(y, name), 4 * width, name)
        y = layers.EinsumDense(  # a factor per channel, close to 0 at first
            "bhwc,c->bhwc",
            output_shape=(*y.shape[1:3], width),
            kernel_initializer=keras.initializers.Constant(1e-2),
            name=f"{name}_scale",
        )(y)
        x = layers.Add(name=f"{name}_add")([x, _drop_path(y, next(drop), name)])
    features = layers.GlobalAveragePooling2D(name="pool")(x)
    return _head(_layer_norm(features, "last"), classes, dropout)


def _check_patch(*, patch: int | None, **_: Any) -> None:
    if patch is not None and patch & (patch - 1):
        raise ValueError(f"patch={patch} is not a power of two")


def _check_vit(*, width: int, heads: int, patch: int | None, **_: Any) -> None:
    if width % heads:
        raise ValueError(f"heads={heads} does not divide width={width}")
    _check_patch(patch=patch)


@checked_by(_check_vit)
@idle("drop_path", when=lambda leaf: leaf["depth"] == 1, **_ONE_BLOCK)
def vit(
    images: Tensor,
    classes: int,
    *,
    width: Count,
    depth: Count,
    heads: Count,
    patch: Count | None,
    drop_path: Fraction,
    dropout: Fraction,
    stem: Stem = "convolutions",
) -> Tensor:
    """A small vision transformer whose tokens come from a convolutional stem.

    Convolutions of stride 2 turn each patch of `patch` × `patch` pixels into one token; with the
    stem `patches`, a dense layer does. With null, a patch is 4×4 pixels, 2×2 below 16 pixels, and
    larger where more than 14 would fit along a side. Tokens are averaged at the end. Sources:
    Dosovitskiy et al., 2021; Xiao et al., "Early Convolutions Help Transformers See Better", 2021.

    Raises:
        ValueError: `heads` does not divide `width`, `patch` is no power of two, or it is so small
            that an image has more than 1,024 tokens.
    """
    layers = keras.layers

    def attended(x: Tensor, name: str) -> Tensor:
        y = _layer_norm(x, f"{name}_attention")
        return layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(y, y)

    tokens = _tokens(images, width, patch, stem)
    x = _mixing(tokens, attended, "attended", depth, drop_path)
    return _head(x, classes, dropout)


@checked_by(_check_patch)
@idle("drop_path", when=lambda leaf: leaf["depth"] == 1, **_ONE_BLOCK)
def mixer(
    images: Tensor,
    classes: int,
    *,
    width: Count,
    depth: Count,
    patch: Count | None,
    drop_path: Fraction,
    dropout: Fraction,
    stem: Stem = "convolutions",
) -> Tensor:
    """An MLP-Mixer: dense layers in turn across the patches and across the channels.

    Tokens are made as in `vit`. Source: Tolstikhin et al., "MLP-Mixer", 2021.

    Raises:
        ValueError: as `vit`.
    """
    layers = keras.layers

    def mixed(x: Tensor, name: str) -> Tensor:
        y = layers.Permute((2, 1), name=f"{name}_turn")(_layer_norm(x, f"{name}_tokens"))
        y = _perceptron(y, width, f"{name}_tokens")
        return layers.Permute((2, 1), name=f"{name}_return")(y)

    tokens = _tokens(images, width, patch, stem)
    x = _mixing(tokens, mixed, "mixed", depth, drop_path)
    return _head(x, classes, dropout)


def efficientnet_lite(
    images: Tensor,
    classes: int,
    *,
    variant: Annotated[int, Field(ge=0, le=2)],
    size: Count,
    weights: str | None,
    trainable: Trainable,
    backbone_rate: Positive | None,
    dropout: Fraction,
    unfreeze_epochs: WholeNumber = 0,
) -> Tensor:
    """An EfficientNet-Lite, pretrained on ImageNet, and a new head on its 1,280 features.

    Images are resized to `size` × `size` pixels, grey ones become RGB. `weights`, `trainable`,
    `backbone_rate` and `unfreeze_epochs` are for `training/pretrained.py`. Source:
    github.com/tensorflow/tpu, models/official/efficientnet/lite; Tan & Le, "EfficientNet", 2019.

    Raises:
        ValueError: images have two or four channels.
    """
    layers = keras.layers
    x = _photos(images, size)
    x = layers.Rescaling(255 / 128, -127 / 128, name="photo_scaling")(x)  # (pixel - 127) / 128
    x = _lite_norm(_conv(x, 32, 3, 2, "stem"), "stem")
    wider, deeper = LITE[variant]
    number = 0
    for position, (repeats, kernel, stride, expand, channels) in enumerate(LITE_STAGES):
        ends = position in (0, len(LITE_STAGES) - 1)
        width = _multiple_of_8(channels * wider)
        for repeat in range(repeats if ends else math.ceil(repeats * deeper)):
            name, before = f"block_{number}", x
            if expand > 1:
                x = _conv(x, x.shape[-1] * expand, 1, 1, f"{name}_expand")
                x = _lite_norm(x, f"{name}_expand")
            x = _depthwise_conv(x, kernel, stride if repeat == 0 else 1, f"{name}_depthwise")
            x = _lite_norm(x, f"{name}_depthwise")
            x = _lite_norm(_conv(x, width, 1, 1, f"{name}_project"), f"{name}_project", relu=False)
            if before.shape == x.shape:
                x = layers.Add(name=f"{name}_add")([before, x])
            number += 1
    return _head(_lite_norm(_conv(x, 1280, 1, 1, "top"), "top"), classes, dropout)


def keras_application(
    images: Tensor,
    classes: int,
    *,
    name: ApplicationName,
    size: Count | None,
    weights: str | None,
    trainable: Trainable,
    backbone_rate: Positive | None,
    dropout: Fraction,
    unfreeze_epochs: WholeNumber = 0,
) -> Tensor:
    """A network of `keras.applications` by its name, with a new head.

    Images are scaled as that network expects and resized to `size` × `size` pixels, or left as they
    are (null); grey ones become RGB. `weights`, `trainable`, `backbone_rate` and
    `unfreeze_epochs` are for `training/pretrained.py`; this downloads nothing.

    Raises:
        ValueError: images have two or four channels, or are too small for the network.
    """
    x = _photos(images, size)
    scaling = next(scaling for scaling, names in APPLICATIONS.items() if name in names)
    if scaling == "bgr":
        x = keras.ops.flip(x, axis=-1)
    x = keras.layers.Rescaling(*SCALINGS[scaling], name="photo_scaling")(x)
    build = getattr(keras.applications, name)
    try:
        features = build(include_top=False, weights=None, input_tensor=x).output
    except ValueError as error:
        if "zero or negative" not in str(error):
            raise
        pixels = "×".join(map(str, x.shape[1:3]))
        raise ValueError(
            f"images of {pixels} pixels are too small for {name}; enlarge them, model.size=96"
        ) from error
    return _head(features, classes, dropout)


def _lite_norm(x: Tensor, name: str, *, relu: bool = True) -> Tensor:
    x = keras.layers.BatchNormalization(epsilon=1e-3, name=f"{name}_norm")(x)
    return keras.layers.ReLU(max_value=6, name=f"{name}_activation")(x) if relu else x


def _multiple_of_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _photos(images: Tensor, size: int | None) -> Tensor:
    """RGB images f32[N,size,size,3] of images of any size, grey or RGB; null leaves the size."""
    layers, channels = keras.layers, images.shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"takes grey or RGB images, not {channels} channels")
    x = images
    if size is not None and x.shape[1:3] != (size, size):
        x = layers.Resizing(size, size, antialias=True, name="resizing")(x)
    return x if channels == 3 else layers.Concatenate(name="rgb")([x, x, x])


def _head(features: Tensor, classes: int, dropout: float) -> Tensor:
    """Class probabilities of features f32[N,F], or of maps f32[N,H,W,F], which it averages."""
    layers = keras.layers
    if len(features.shape) == 4:
        features = layers.GlobalAveragePooling2D(name="features")(features)
    else:
        features = layers.Identity(name="features")(features)
    if dropout:
        features = layers.Dropout(dropout, name="dropout")(features)
    return _probabilities(features, classes)


def _probabilities(features: Tensor, classes: int) -> Tensor:
    # Softmax in float32, whatever the precision before: probabilities are compared and summed.
    return keras.layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(
        features
    )


def _blocks(widths: Sequence[int], blocks: Sequence[int]) -> list[tuple[str, int, int]]:
    """Name, width and stride of each block; the first of each width but the first has stride 2."""
    return [
        (f"stage_{stage}_block_{number}", width, 2 if number == 1 < stage else 1)
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1)
        for number in range(1, count + 1)
    ]


def _conv(x: Tensor, filters: int, size: int, stride: int, name: str) -> Tensor:
    return keras.layers.Conv2D(
        filters,
        size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)


def _depthwise_conv(x: Tensor, size: int, stride: int, name: str) -> Tensor:
    return keras.layers.DepthwiseConv2D(
        size,
        stride,
        padding="same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=f"{name}_conv",
    )(x)


def _normed(x: Tensor, activation: str, name: str) -> Tensor:
    x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
    return keras.layers.Activation(activation, name=f"{name}_activation")(x)


def _layer_norm(x: Tensor, name: str) -> Tensor:
    return keras.layers.LayerNormalization(epsilon=1e-6, name=f"{name}_norm")(x)


def _preactivated(
    x: Tensor, width: int, stride: int, activation: str, dropout: float, name: str
) -> Tensor:
    y = _normed(x, activation, f"{name}_1")
    same = stride == 1 and x.shape[-1] == width
    shortcut = x if same else _projected(y, width, stride, f"{name}_shortcut")
    y = _normed(_conv(y, width, 3, stride, f"{name}_1"), activation, f"{name}_2")
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_dropout")(y)
    return keras.layers.Add(name=f"{name}_add")([shortcut, _conv(y, width, 3, 1, f"{name}_2")])


def _projected(x: Tensor, width: int, stride: int, name: str) -> Tensor:
    """A 1×1 convolution of every `stride`-th pixel, taken apart before it.

    oneDNN writes beyond its memory in the gradient of strided ones of less than 16 channels.
    """
    if stride > 1:
        x = keras.layers.MaxPooling2D(1, stride, padding="same", name=f"{name}_pixels")(x)
    return _conv(x, width, 1, 1, name)


def _perceptron(x: Tensor, hidden: int, name: str) -> Tensor:
    """Two dense layers with GELU between them, along the last axis, which keeps its size."""
    y = keras.layers.Dense(hidden, activation="gelu", name=f"{name}_dense_1")(x)
    return keras.layers.Dense(x.shape[-1], name=f"{name}_dense_2")(y)


def _rising(most: float, blocks: int) -> Iterator[float]:
    return iter([most * number / max(1, blocks - 1) for number in range(blocks)])


def _drop_path(x: Tensor, share: float, name: str) -> Tensor:
    """Leaves `x` out for a random `share` of the images in training (stochastic depth)."""
    if not share:
        return x
    shape = (None, *[1] * (len(x.shape) - 1))
    return keras.layers.Dropout(share, noise_shape=shape, name=f"{name}_drop_path")(x)


def _mixing(
    x: Tensor, mix: Callable[[Tensor, str], Tensor], mixed: str, depth: int, drop_path: float
) -> Tensor:
    """Features of tokens f32[N,T,width]: blocks that `mix` the tokens, then each token's channels.

    `mix` takes the tokens and the block's name; `mixed` ends the name of the sum that follows.
    """
    layers, drop = keras.layers, _rising(drop_path, depth)
    for number in range(1, depth + 1):
        name, share = f"block_{number}", next(drop)
        y = mix(x, name)
        x = layers.Add(name=f"{name}_{mixed}")([x, _drop_path(y, share, f"{name}_{mixed}")])
        y = _perceptron(_layer_norm(x, name), 2 * x.shape[-1], name)
        x = layers.Add(name=f"{name}_add")([x, _drop_path(y, share, name)])
    return layers.GlobalAveragePooling1D(name="pool")(_layer_norm(x, "last"))


def _tokens(images: Tensor, width: int, patch: int | None, stem: str) -> Tensor:
    """One token per patch with its position added: f32[N,H,W,C] → f32[N,T,width]."""
    layers = keras.layers
    height, side = images.shape[1:3]
    patch = patch or _patch(max(height, side))
    tokens = math.ceil(height / patch) * math.ceil(side / patch)
    if tokens > MOST_TOKENS:
        raise ValueError(
            f"patch={patch} makes {tokens:,} tokens of {height}×{side} pixels, more than "
            f"{MOST_TOKENS:,}; patch={_patch(max(height, side))} fits"
        )
    x = _patches(images, patch) if stem == "patches" else _convolved(images, width, patch)
    x = layers.Reshape((tokens, -1), name="tokens")(x)
    return layers.EinsumDense(  # its bias differs from token to token: the position
        "btc,cd->btd",
        output_shape=(tokens, width),
        bias_axes="td",
        bias_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        name="embedding",
    )(x)


def _convolved(images: Tensor, width: int, patch: int) -> Tensor:
    """Features of each patch of `patch` × `patch` pixels, by convolutions of stride 2."""
    x, steps = images, patch.bit_length() - 1
    for number in range(1, steps + 1):
        x = _conv(x, max(8, width >> (steps - number + 1)), 3, 2, f"stem_{number}")
        x = _normed(x, "gelu", f"stem_{number}")
    return x


def _patches(images: Tensor, patch: int) -> Tensor:
    """The pixels of each patch, f32[N,rows,columns,patch,patch,C]; zeros beyond the image."""
    layers = keras.layers
    height, side, channels = images.shape[1:]
    beyond = ((0, -height % patch), (0, -side % patch))
    x = (
        layers.ZeroPadding2D(beyond, name="patch_padding")(images)
        if any(map(sum, beyond))
        else images
    )
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    x = layers.Reshape((rows, patch, columns, patch, channels), name="patch_pixels")(x)
    return layers.Permute((1, 3, 2, 4, 5), name="patches")(x)


def _patch(side: int) -> int:
    """The side of a patch, in pixels, for images of that side."""
    patch = 2 if side < 16 else 4
    while side > MOST_PATCHES * patch:
        patch *= 2
    return patch
