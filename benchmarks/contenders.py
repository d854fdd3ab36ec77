"""Ways to train the same network on the same images; each gives its seconds per epoch.

The network is the classic MLP (784–256–128–10, two dropouts of 0.2), the small CNN of
`conf/model/cnn.yaml` or a residual network of three stages with batch normalisation (`model=resnet
model.blocks=1`, 73 million operations per image forward); Adam at 0.001, cross-entropy, shuffled
batches. Each library is measured in its best documented way for data that fits into memory, and as
most scripts use it: Keras' `fit` with `steps_per_execution`, on TensorFlow and on JAX, and plain;
PyTorch compiled, plain and with a DataLoader.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
DROPOUT = {"mlp": 0.2, "cnn": 0.4, "resnet": 0.0}
WIDTHS = (32, 64, 128)  # of the residual network's stages
FUSED_STEPS = 50  # steps of Keras' `fit` per return to Python
RUN_EPOCHS = 20  # of the default run, whose epochs these stand for


@dataclass(frozen=True, kw_only=True)
class Task:
    """Images u8[N,28,28,1] and labels i32[N] to fit a `model` on, for `epochs` in batches.

    `precision` is float32, or bfloat16 with weights in float32.
    """

    images: Array
    labels: Array
    model: str
    batch_size: int
    epochs: int
    precision: str = "float32"


def ours(task: Task) -> Iterator[float]:
    """The pipeline's loop on the Keras model, with the setting that its command line makes."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    import keras

    from pipeline.data.values import Split
    from pipeline.training import loop
    from pipeline.training.train import xla_is_faster

    ends: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: ends.append(time.perf_counter()),
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()),
    )
    model = _keras_model(task)
    train = Split(images=task.images, labels=task.labels)
    nothing = Split(images=task.images[:0], labels=task.labels[:0])
    callbacks = keras.callbacks.CallbackList([clock], model=model, epochs=task.epochs)
    loop.fit(
        model,
        (train, nothing),
        callbacks,
        batch_size=task.batch_size,
        seed=0,
        xla=xla_is_faster(model, RUN_EPOCHS * (len(train) // task.batch_size)),
    )
    return (end - start for start, end in zip(ends[::2], ends[1::2], strict=True))


def keras_fit(task: Task, *, fused_steps: int = 1) -> Iterator[float]:
    """The plain script: `model.fit` on float arrays."""
    model = _keras_model(task, scaled=True, fused_steps=fused_steps)
    images = task.images.astype("float32") / 255
    return _epochs(
        task,
        lambda: model.fit(images, task.labels, batch_size=task.batch_size, epochs=1, verbose=0),
    )


def keras_fit_fused(task: Task) -> Iterator[float]:
    """Keras' documented way to less overhead per step: `steps_per_execution`."""
    return keras_fit(task, fused_steps=FUSED_STEPS)


def keras_jax_fused(task: Task) -> Iterator[float]:
    """The same on Keras' JAX backend. Only in a process that has not imported Keras yet."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    if keras.backend.backend() != "jax":
        raise SystemExit("Keras was imported before its backend was chosen")
    return keras_fit(task, fused_steps=FUSED_STEPS)


def torch_tensors(task: Task, *, compiled: bool = False) -> Iterator[float]:
    """PyTorch over resident tensors with the fused Adam."""
    import torch

    model, optimizer, loss = _torch_model(task)
    layout = torch.contiguous_format if task.model == "mlp" else torch.channels_last
    model = model.to(memory_format=layout)
    images = torch.from_numpy(task.images).permute(0, 3, 1, 2).float().div(255)
    images = images.contiguous(memory_format=layout)
    labels = torch.from_numpy(task.labels.astype("int64"))
    forward = torch.compile(model) if compiled else model

    def epoch() -> None:
        order = torch.randperm(len(labels))
        for rows in order.split(task.batch_size):
            optimizer.zero_grad()
            with _torch_precision(task):
                value = loss(forward(images[rows]), labels[rows])
            value.backward()
            optimizer.step()

    return _epochs(task, epoch)


def torch_compiled(task: Task) -> Iterator[float]:
    """The same with `torch.compile`, which needs a C++ compiler."""
    return torch_tensors(task, compiled=True)


def torch_dataloader(task: Task) -> Iterator[float]:
    """PyTorch with a DataLoader over a TensorDataset."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    model, optimizer, loss = _torch_model(task)
    images = torch.from_numpy(task.images).permute(0, 3, 1, 2).float().div(255).contiguous()
    labels = torch.from_numpy(task.labels.astype("int64"))
    loader = DataLoader(TensorDataset(images, labels), batch_size=task.batch_size, shuffle=True)

    def epoch() -> None:
        for batch, targets in loader:
            optimizer.zero_grad()
            with _torch_precision(task):
                value = loss(model(batch), targets)
            value.backward()
            optimizer.step()

    return _epochs(task, epoch)


def jax_scan(task: Task) -> Iterator[float]:
    """Hand-written JAX: one `lax.scan` per epoch. The MLP only."""
    import jax
    import jax.numpy as jnp

    images, labels = jnp.asarray(task.images.reshape(-1, 784)), jnp.asarray(task.labels)
    key = jax.random.key(0)
    sizes = (784, 256, 128, 10)
    params = [
        (jax.nn.initializers.glorot_uniform()(k, (n, m)), jnp.zeros(m))
        for k, n, m in zip(jax.random.split(key, 3), sizes[:-1], sizes[1:], strict=True)
    ]
    zeros = jax.tree.map(jnp.zeros_like, params)
    steps = len(labels) // task.batch_size

    def loss(params: Any, x: Any, y: Any, key: Any) -> Any:
        for index, (kernel, bias) in enumerate(params[:-1]):
            x = jax.nn.relu(x @ kernel + bias)
            kept = jax.random.bernoulli(jax.random.fold_in(key, index), 0.8, x.shape)
            x = jnp.where(kept, x / 0.8, 0)
        logits = x @ params[-1][0] + params[-1][1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    def step(state: Any, rows_key: Any) -> Any:
        params, first, second, count = state
        rows, key = rows_key
        value, gradient = jax.value_and_grad(loss)(
            params, images[rows].astype(jnp.float32) / 255, labels[rows], key
        )
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        rate = 0.001 * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        params = jax.tree.map(
            lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-7), params, first, second
        )
        return (params, first, second, count), value

    @jax.jit
    def epoch(state: Any, key: Any) -> Any:
        order = jax.random.permutation(key, len(labels))[: steps * task.batch_size]
        keys = jax.random.split(key, steps)
        return jax.lax.scan(step, state, (order.reshape(steps, -1), keys))

    state = (params, zeros, zeros, jnp.float32(0))
    number = iter(range(1_000_000))

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(epoch(state, jax.random.fold_in(key, next(number))))

    return _epochs(task, run)


def sklearn_mlp(task: Task) -> Iterator[float]:
    """scikit-learn's MLPClassifier, which has no dropout. The MLP only."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier((256, 128), batch_size=task.batch_size, random_state=0)
    images = (task.images.reshape(-1, 784) / 255).astype("float32")
    classes = np.unique(task.labels)
    return _epochs(task, lambda: model.partial_fit(images, task.labels, classes=classes))


def sgemm(task: Task) -> Iterator[float]:
    """The matrix products of an epoch and nothing else: the floor. The MLP only."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Array:
        return rng.random(shape, dtype=np.float32)

    n, steps = task.batch_size, -(-len(task.labels) // task.batch_size)
    x, a, b, c = random(n, 784), random(n, 256), random(n, 128), random(n, 10)
    k1, k2, k3 = random(784, 256), random(256, 128), random(128, 10)

    def epoch() -> None:
        for _ in range(steps):
            x @ k1, a @ k2, b @ k3  # forward
            b.T @ c, a.T @ b, x.T @ a  # gradients of the kernels
            c @ k3.T, b @ k2.T  # gradients of the inputs

    return _epochs(task, epoch)


def convolutions(task: Task) -> Iterator[float]:
    """The convolutions and matrix products of an epoch and nothing else, by TensorFlow's kernels.

    The floor of the networks with convolutions.
    """
    import keras
    import tensorflow as tf

    kinds = (keras.layers.Conv2D, keras.layers.Dense)
    layers = [layer for layer in _keras_model(task).layers if isinstance(layer, kinds)]
    rng = np.random.default_rng(0)

    def random(shape: tuple[int, ...]) -> Any:
        return tf.cast(rng.random(shape, dtype=np.float32), task.precision)

    def batch_of(shape: tuple[int, ...]) -> Any:
        return random((task.batch_size, *shape[1:]))

    given = [
        (batch_of(one.input.shape), random(one.kernel.shape), batch_of(one.output.shape))
        for one in layers
    ]

    @tf.function
    def step(given: Any) -> list[Any]:
        results = []  # what is not returned would not be computed
        for layer, (x, kernel, gradient) in zip(layers, given, strict=True):
            with tf.GradientTape() as tape:
                wanted = [kernel] if layer is layers[0] else [kernel, x]
                tape.watch(wanted)
                if isinstance(layer, keras.layers.Dense):
                    y = x @ kernel
                else:
                    y = tf.nn.conv2d(x, kernel, layer.strides, layer.padding.upper())
            results += [y, *tape.gradient(y, wanted, output_gradients=gradient)]
        return results

    steps = -(-len(task.labels) // task.batch_size)

    def epoch() -> None:
        for _ in range(steps):
            results = step(given)
        results[-1].numpy()  # waits for the last step

    return _epochs(task, epoch)


CONTENDERS: dict[str, Callable[[Task], Iterator[float]]] = {
    "ours": ours,
    f"keras fit, {FUSED_STEPS} steps": keras_fit_fused,
    f"keras on jax, {FUSED_STEPS} steps": keras_jax_fused,
    "keras fit": keras_fit,
    "torch compiled": torch_compiled,
    "torch tensors": torch_tensors,
    "torch DataLoader": torch_dataloader,
    "jax scan": jax_scan,
    "scikit-learn": sklearn_mlp,
    "sgemm floor": sgemm,
    "convolution floor": convolutions,
}
MLP_ONLY = {"jax scan", "scikit-learn", "sgemm floor"}
CONVOLUTIONS_ONLY = {"convolution floor"}


def contenders_of(model: str) -> list[str]:
    """The contenders that can train the `model`: mlp, cnn or resnet."""
    others = CONVOLUTIONS_ONLY if model == "mlp" else MLP_ONLY
    return [name for name in CONTENDERS if name not in others]


def _epochs(task: Task, epoch: Callable[[], Any]) -> Iterator[float]:
    for _ in range(task.epochs):
        started = time.perf_counter()
        epoch()
        yield time.perf_counter() - started


def _keras_model(task: Task, *, scaled: bool = False, fused_steps: int = 1) -> Any:
    import keras

    from pipeline.training import models

    keras.utils.set_random_seed(0)
    low = task.precision != "float32"
    keras.config.set_dtype_policy(f"mixed_{task.precision}" if low else "float32")
    shape = task.images.shape[1:]
    images = keras.Input(shape, dtype="float32" if scaled else "uint8")
    x = images if scaled else keras.layers.Rescaling(1 / 255)(images)
    dropout = DROPOUT[task.model]
    if task.model == "mlp":
        y = models.mlp(x, 10, hidden=[256, 128], activation="relu", dropout=dropout)
    elif task.model == "resnet":
        y = models.resnet(
            x,
            10,
            widths=list(WIDTHS),
            blocks=1,
            stem_stride=1,
            activation="relu",
            dropout=dropout,
        )
    else:
        y = models.cnn(x, 10, filters=[32, 64], dense=128, activation="relu", dropout=dropout)
    model = keras.Model(images, y)
    model.compile(
        "adam",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=fused_steps,
    )
    return model


def _torch_model(task: Task) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    drop = nn.Dropout(DROPOUT[task.model])
    if task.model == "mlp":
        hidden = [nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), drop]
        layers = [*hidden, nn.Linear(256, 128), nn.ReLU(), drop, nn.Linear(128, 10)]
    elif task.model == "resnet":
        layers = [_torch_resnet()]
    else:
        first = [nn.Conv2d(1, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(32, 64, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
        dense = [nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), drop, nn.Linear(128, 10)]
        layers = [*first, *second, *dense]
    model = nn.Sequential(*layers)
    return model, torch.optim.Adam(model.parameters(), fused=True), nn.CrossEntropyLoss()


def _torch_resnet() -> Any:
    """The residual network of `models.resnet`, one block per stage."""
    from torch import nn

    def conv(before: int, width: int, size: int, stride: int) -> Any:
        return nn.Conv2d(before, width, size, stride, padding=size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(before), nn.BatchNorm2d(width)
            self.conv_1 = conv(before, width, 3, stride)
            self.conv_2 = conv(width, width, 3, 1)
            same = stride == 1 and before == width
            self.shortcut = None if same else conv(before, width, 1, stride)

        def forward(self, x: Any) -> Any:
            y = nn.functional.relu(self.first(x), inplace=True)
            shortcut = x if self.shortcut is None else self.shortcut(y)
            y = nn.functional.relu(self.second(self.conv_1(y)), inplace=True)
            return self.conv_2(y) + shortcut

    blocks = [Block(WIDTHS[0], WIDTHS[0], 1)]
    blocks += [Block(before, width, 2) for before, width in pairwise(WIDTHS)]
    head = [nn.BatchNorm2d(WIDTHS[-1]), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(
        conv(1, WIDTHS[0], 3, 1), *blocks, *head, nn.Flatten(), nn.Linear(WIDTHS[-1], 10)
    )


def _torch_precision(task: Task) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=task.precision == "bfloat16")
