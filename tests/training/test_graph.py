from __future__ import annotations

import keras

from pipeline.training.graph import calls_of, head_input, plain_calls


def nested(*, returned: bool = False) -> keras.Model:
    """A model with a network inside that takes images of any size."""
    inner = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(2, 3, name="inner_conv")(inner)
    x = keras.layers.GlobalAveragePooling2D()(x) if returned else x
    x = keras.layers.Dense(3, name="inner_dense")(x) if returned else x
    base = keras.Model(inner, x, name="base")
    images = keras.Input((6, 5, 1), name="images")
    x = base(images)
    if not returned:
        x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
        x = keras.layers.Dense(3, name="last")(keras.ops.relu(x))
    return keras.Model(images, x)


def test_the_tensors_of_a_nested_network_are_those_of_the_model_around_it() -> None:
    model = nested()
    calls = plain_calls(model)
    assert [layer.name for layer in calls] == ["images", "base", "pooling", "last"]
    [base] = calls_of(model)[model.get_layer("base")]
    assert base.inputs == (model.inputs[0],)
    assert base.outputs[0].shape == (None, 4, 3, 2)
    assert keras.Model(model.inputs, base.outputs[0]).output_shape == (None, 4, 3, 2)


def test_calls_in_other_models_do_not_count() -> None:
    model = nested()
    base = model.get_layer("base")
    base(keras.Input((9, 9, 1)))
    [call] = calls_of(model)[base]
    assert call.outputs[0].shape == (None, 4, 3, 2)


def test_a_layer_that_is_called_twice_has_two_calls_and_is_not_plain() -> None:
    images = keras.Input((3,))
    shared = keras.layers.Dense(3, name="shared")
    model = keras.Model(images, shared(shared(images)))
    first, second = calls_of(model)[shared]
    assert second.inputs == first.outputs
    assert shared not in plain_calls(model)
    assert head_input(model) is None


def test_the_head_takes_what_its_last_layer_with_weights_does() -> None:
    model = nested()
    features = head_input(model)
    assert features is not None
    assert keras.Model(model.inputs, features).output_shape == (None, 2)
    assert head_input(nested(returned=True)) is None
    vector = keras.Input((4,))
    head = keras.Sequential([keras.layers.Dropout(0.1), keras.layers.Dense(2)])
    assert head_input(keras.Model(vector, head(vector))) is vector


def test_a_model_that_is_no_graph_has_no_calls() -> None:
    class Subclassed(keras.Model):  # type: ignore[misc]
        pass

    assert calls_of(Subclassed()) == {}
    assert head_input(Subclassed()) is None
