"""Summarises a model: layers, parameters, activations and the memory that training needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from pipeline.data.values import Evaluation

MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One row of the table; `activations` is the number of outputs for one image."""

    name: str
    kind: str
    shape: tuple[int, ...]
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
    """Summarises a compiled `model` that is trained on batches of `batch_size` images."""
    layers = tuple(
        Layer(
            name=layer.name,
            kind=type(layer).__name__,
            shape=tuple(_outputs(layer)[0].shape[1:]),
            parameters=layer.count_params(),
            activations=sum(math.prod(output.shape[1:]) for output in _outputs(layer)),
        )
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
    )
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    activations = sum(layer.activations for layer in layers)
    activation_bytes = batch_size * sum(_output_bytes(layer) for layer in model.layers[1:])
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
            "images (uint8)": batch_size * math.prod(model.input_shape[1:]),
        },
    )


def _output_bytes(layer: keras.layers.Layer) -> int:
    return sum(math.prod(one.shape[1:]) * _item_size(one.dtype) for one in _outputs(layer))


def _outputs(layer: keras.layers.Layer) -> list[Any]:
    """The symbolic outputs of a layer; some have several, as an LSTM that returns its state."""
    found: list[Any] = keras.tree.flatten(layer.output)
    return found


def _bytes(variables: Iterable[keras.Variable]) -> int:
    return sum(math.prod(v.shape) * _item_size(v.dtype) for v in variables)


def _item_size(dtype: str) -> int:
    return tf.dtypes.as_dtype(dtype).size
