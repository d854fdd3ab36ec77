from __future__ import annotations

import math

import optuna
import pytest

from pipeline.sweeps.space import all_corners, corners, distributions, size
from pipeline.system.errors import RequestError
from tests.sweeps.test_study import asked

pytestmark = pytest.mark.slow  # importing Optuna takes a second


def test_hydras_grammar_becomes_optunas_distributions() -> None:
    spaces = distributions(
        asked(
            "optimizer.learning_rate=tag(log,interval(1e-4,1e-2))",
            "model.dropout=interval(0,0.5)",
            "train.epochs=int(interval(1,5))",
            "model=mlp,cnn",
            "seed=range(0,7,3)",
            "train.batch_size=tag(log,range(16,513))",
            "optimizer.clipnorm=range(0.5,2,0.5)",
        ).searched
    )
    kinds = optuna.distributions
    assert spaces == {
        "optimizer.learning_rate": kinds.FloatDistribution(1e-4, 1e-2, log=True),
        "model.dropout": kinds.FloatDistribution(0, 0.5),
        "train.epochs": kinds.IntDistribution(1, 5),
        "model": kinds.CategoricalDistribution(("mlp", "cnn")),
        "seed": kinds.IntDistribution(0, 6, step=3),
        "train.batch_size": kinds.IntDistribution(16, 512, log=True),
        "optimizer.clipnorm": kinds.FloatDistribution(0.5, 1.5, step=0.5),
    }


def test_shuffled_choices_are_those_of_a_resumed_study() -> None:
    [space] = distributions(asked("seed=shuffle(choice(5,3,8,1,9,7))").searched).values()
    assert space.choices == ("5", "3", "8", "1", "9", "7")


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("seed=range(2,2)", "has no value to try"),
        ("optimizer.learning_rate=tag(log,interval(0,1))", "low"),
        ("train.batch_size=tag(log,range(16,513,16))", "step"),
        ("model.dropout=tag(log,range(0.1,0.5,0.1))", "step"),
        ("optimizer.learning_rate=interval(1e-4,inf)", "must be finite"),
        ("model.dropout=interval(-inf,0.5)", "must be finite"),
        ("model.dropout=interval(nan,0.5)", "must be finite"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(word: str, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        distributions(asked(word).searched)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("model=mlp,cnn,linear", 3),
        ("seed=range(0,7,3)", 3),
        ("train.epochs=int(interval(1,5))", 5),
        ("model.dropout=range(0.1,0.5,0.1)", 4),
        ("model.dropout=interval(0,0.5)", math.inf),
    ],
)
def test_the_size_of_a_space_is_the_number_of_its_values(word: str, values: float) -> None:
    [space] = distributions(asked(word).searched).values()
    assert size(space) == values


def test_the_corners_have_every_bound_and_choice_once() -> None:
    spaces = distributions(asked("model=mlp,cnn,linear", "model.dropout=interval(0,0.5)").searched)
    assert list(corners(spaces)) == [
        {"model": "mlp", "model.dropout": "0.0"},
        {"model": "cnn", "model.dropout": "0.0"},
        {"model": "linear", "model.dropout": "0.0"},
        {"model": "mlp", "model.dropout": "0.5"},
    ]
    together = list(all_corners(spaces))
    assert len(together) == 6
    assert {"model": "linear", "model.dropout": "0.5"} in together


@pytest.mark.parametrize(
    ("space", "tried"),
    [
        ("interval(64,256)", ["64.0", "256.0", "160.5"]),
        ("interval(1,2)", ["1.0", "2.0", "1.5"]),
        ("interval(0.5,2)", ["0.5", "2.0"]),
        ("int(interval(64,256))", ["64", "256"]),
        ("range(1.0,3.0,0.5)", ["1.0", "2.5"]),
        ("range(1.0,3.5,0.5)", ["1.0", "3.0", "1.5"]),
        ("range(1.0,4.0,1.0)", ["1.0", "3.0"]),
    ],
)
def test_between_whole_bounds_a_number_that_is_not_whole_is_tried_too(
    space: str, tried: list[str]
) -> None:
    spaces = distributions(asked(f"optimizer.learning_rate={space}").searched)
    assert [corner["optimizer.learning_rate"] for corner in corners(spaces)] == tried


def test_a_logarithmic_interval_of_whole_numbers_stays_logarithmic() -> None:
    [space] = distributions(asked("seed=int(tag(log,interval(64,256)))").searched).values()
    assert space == optuna.distributions.IntDistribution(64, 256, log=True)
