"""The calls of layers in the graph of a model, with the tensors that go in and come out.

A layer's own `input` and `output` are those of its first call. A network that is nested in a model
was first called on its own, so its `output` is not part of that model, and may have open sizes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import keras

from pipeline.data.values import Shape
from pipeline.system.errors import RequestError


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerCall:
    """One call of a layer: its symbolic inputs and outputs, flattened."""

    inputs: tuple[keras.KerasTensor, ...]
    outputs: tuple[keras.KerasTensor, ...]


def require_one_input(model: keras.Model) -> None:
    """Checks that a model of the caller's own is a graph of layers with one input.

    Raises:
        RequestError: it has several, or is of a class with a `call` of its own.
    """
    if len(getattr(model, "inputs", None) or ()) != 1:
        raise RequestError(
            "model: it must be a graph of layers with one input; of another model, pass "
            "keras.Model(images, yours(images)) with images = keras.Input(prepared.image_shape)"
        )


def takes(model: keras.Model, shape: Shape) -> bool:
    """Whether a model takes images of that shape; one of open size (None) takes any size."""
    wanted = tuple(model.inputs[0].shape[1:])
    return len(wanted) == len(shape) and all(
        size in (None, given) for size, given in zip(wanted, shape, strict=True)
    )


def calls_of(model: keras.Model) -> dict[keras.Layer, list[LayerCall]]:
    """The calls of each layer of a model, in the order of its layers.

    Empty if the model is not a graph of layers.
    """
    if not getattr(model, "inputs", None):  # a subclass of keras.Model with a `call` of its own
        return {}
    found: dict[keras.Operation, dict[int, LayerCall]] = defaultdict(dict)
    waiting = [*model.outputs]
    while waiting:
        operation, number, _ = waiting.pop()._keras_history
        if number not in found[operation]:
            node = operation._inbound_nodes[number]
            call = LayerCall(inputs=(*node.input_tensors,), outputs=(*node.output_tensors,))
            found[operation][number] = call
            waiting += call.inputs
    return {
        layer: [call for _, call in sorted(found[layer].items())]
        for layer in model.layers
        if layer in found
    }


def plain_calls(model: keras.Model) -> dict[keras.Layer, LayerCall]:
    """The call of each layer that is called once and has one output, in the order of the layers."""
    return {
        layer: calls[0]
        for layer, calls in calls_of(model).items()
        if len(calls) == 1 and len(calls[0].outputs) == 1
    }


def head_input(model: keras.Model) -> keras.KerasTensor | None:
    """The input of the last layer with weights: the features that a classifier takes.

    None if it has several inputs, or is a nested network that takes anything other than a vector.
    """
    weighted = [(layer, calls) for layer, calls in calls_of(model).items() if layer.weights]
    if not weighted:
        return None
    last, calls = weighted[-1]
    if len(calls) != 1 or len(calls[0].inputs) != 1:
        return None
    [features] = calls[0].inputs
    return None if isinstance(last, keras.Model) and len(features.shape) != 2 else features
