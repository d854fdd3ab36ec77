"""Summarises a model: layers, parameters, activations and the memory that training needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO

import keras
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from pipeline.data.values import Evaluation
from pipeline.training.graph import calls_of

MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One row of the table; `activations` is the number of outputs for one image.

    A size in `shape` is None if it depends on the image.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...]
    parameters: int
    activations: int


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """Layers and totals of a compiled model; memory in bytes for one training batch.

    The count follows Stanford CS231n, "Computational considerations": parameters, their gradients
    and the optimizer's slots (Adam has two per parameter); activations and their gradients; the
    batch of uint8 images.
    """

    layers: tuple[Layer, ...]
    parameters: int
    activations: int
    memory: dict[str, int]

    @property
    def recorded(self) -> Evaluation:
        """What a run records of it: the totals as metrics, and all of it as a text."""
        totals = {
            "model/parameters": self.parameters,
            "model/activations": self.activations,
            "model/training_memory_mb": sum(self.memory.values()) / MB,
        }
        return Evaluation(metrics=totals, texts={"model_summary.txt": str(self)})

    def __str__(self) -> str:
        console = Console(
            width=100, record=True, file=StringIO(), highlight=False, markup=False, emoji=False
        )
        console.print(self._layer_table(), self._memory_table())
        return console.export_text()

    def _layer_table(self) -> Table:
        table = Table(title="Layers", title_justify="left", show_footer=True)
        table.add_column("layer", "total")
        table.add_column("kind")
        table.add_column("output")
        table.add_column("parameters", f"{self.parameters:,}", justify="right")
        table.add_column("activations", f"{self.activations:,}", justify="right")
        for layer in self.layers:
            table.add_row(
                layer.name,
                layer.kind,
                " × ".join(map(str, layer.shape)),
                f"{layer.parameters:,}",
                f"{layer.activations:,}",
            )
        return table

    def _memory_table(self) -> Table:
        table = Table(title="Memory of one training step", title_justify="left", show_footer=True)
        table.add_column("what", "total")
        table.add_column("MB", f"{sum(self.memory.values()) / MB:.3f}", justify="right")
        for what, size in self.memory.items():
            table.add_row(what, f"{size / MB:.3f}")
        return table


def summarise(model: keras.Model, *, batch_size: int) -> ModelSummary:
    """Summarises a compiled `model` that is trained on batches of `batch_size` images.

    A network nested in it is one layer, whose outputs count, but not those of the layers inside.
    """
    outputs = {
        layer: [output for call in calls for output in call.outputs]
        for layer, calls in calls_of(model).items()
        if not isinstance(layer, keras.layers.InputLayer)
    }
    layers = tuple(
        Layer(
            name=layer.name,
            kind=type(layer).__name__,
            shape=tuple(found[0].shape[1:]),
            parameters=layer.count_params(),
            activations=sum(map(_size, found)),
        )
        for layer, found in outputs.items()
    )
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    activations = sum(layer.activations for layer in layers)
    activation_bytes = batch_size * sum(
        _size(output) * _item_size(output.dtype) for found in outputs.values() for output in found
    )
    # The step counter and the learning rate are scalars; the other variables are the slots.
    slots = _bytes([v for v in model.optimizer.variables if v.shape != ()])
    return ModelSummary(
        layers=layers,
        parameters=sum(layer.parameters for layer in layers),
        activations=activations,
        memory={
            "parameters": _bytes(model.weights),
            "gradients": _bytes(model.trainable_variables),
            f"optimizer state ({type(model.optimizer).__name__})": slots,
            f"activations, batch of {batch_size}": activation_bytes,
            "gradients of activations": activation_bytes,
            "images (uint8)": batch_size * sum(map(_size, model.inputs)),
        },
    )


def _size(tensor: keras.KerasTensor) -> int:
    """The number of values for one image, as far as it is known."""
    return math.prod(size for size in tensor.shape[1:] if size is not None)


def _bytes(variables: Iterable[keras.Variable]) -> int:
    return sum(math.prod(v.shape) * _item_size(v.dtype) for v in variables)


def _item_size(dtype: str) -> int:
    return tf.dtypes.as_dtype(dtype).size
