from __future__ import annotations

from collections.abc import Sequence

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from hydra.types import RunMode

from pipeline.config.schema import register
from pipeline.config.words import quoted
from pipeline.sweeps.jobs import Grid, Job, Multirun, asked_for, grid, shown
from pipeline.sweeps.outcomes import FAILED, FINISHED, KILLED, PRUNED, Outcome
from pipeline.system.errors import RequestError
from pipeline.verbs import requests
from tests.commands import CONF


def multirun(*words: str) -> Multirun:
    """What Hydra would hand to the sweeper for these words."""
    register(requests())
    setup_globals()
    loader = ConfigLoaderImpl(config_search_path=create_config_search_path(str(CONF)))
    composed = loader.load_configuration("config", list(words), run_mode=RunMode.MULTIRUN)
    return asked_for(words, composed, loader)


def params(jobs: Sequence[Job]) -> list[list[str]]:
    return [list(job.params.values()) for job in jobs]


def test_a_grid_is_every_combination_the_last_key_changing_fastest() -> None:
    jobs = grid(multirun("train.epochs=1,2", "model=mlp,cnn", "seed=5").searched)
    assert [job.index for job in jobs] == [0, 1, 2, 3]
    assert jobs[1].overrides == ["train.epochs=1", "model=cnn"]
    assert params(jobs) == [["1", "mlp"], ["1", "cnn"], ["2", "mlp"], ["2", "cnn"]]


def test_ranges_and_choices_and_names_of_a_group_are_listed() -> None:
    asked = multirun("seed=range(0,5,2)", "train.xla=true,null", "model=glob(*n*,exclude=cnn)")
    assert params(grid(asked.searched))[:2] == [["0", "True", "linear"], ["0", "null", "linear"]]
    assert len(grid(asked.searched)) == 6


def test_parameters_kept_in_a_file_are_searched_unless_the_command_line_says_otherwise() -> None:
    kept = multirun("sweep=lr_grid")
    assert len(grid(kept.searched)) == 6
    fewer = multirun("sweep=lr_grid", "model.dropout=0.2")
    assert params(grid(fewer.searched)) == [["0.0003"], ["0.001"], ["0.003"]]
    assert fewer.fixed == ["sweep=lr_grid", "model.dropout=0.2"]
    other = multirun("sweep=lr_grid", "model.dropout=0.2,0.4,0.6")
    assert len(grid(other.searched)) == 9


@pytest.mark.parametrize("words", [(), ("train.epochs=2",), ("sweep=tpe",)])
def test_a_sweep_over_nothing_is_refused_with_an_example(words: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"nothing to sweep over[\s\S]*seed=0,1,2"):
        multirun(*words)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(RequestError, match=r"seed=range\(3,3\): has no value to try"):
        grid(multirun("seed=range(3,3)").searched)


def test_an_interval_is_no_part_of_a_grid() -> None:
    with pytest.raises(RequestError, match=r"interval\(0,0.5\).*hydra/sweeper=optuna"):
        grid(multirun("model.dropout=interval(0,0.5)").searched)


def test_a_job_is_composed_and_checked() -> None:
    asked = multirun("model=mlp,cnn", "optimizer.learning_rate=0.1,0.2", "seed=7")
    config = asked.compose(grid(asked.searched)[3])
    assert (config.choices.model, config.optimizer["learning_rate"], config.seed) == ("cnn", 0.2, 7)


def test_a_bad_value_names_its_job() -> None:
    asked = multirun("model.dropout=0.1,0.2,1.5")
    with pytest.raises(RequestError, match=r"job 2 \(dropout=1.5\): model.dropout: .*less than 1"):
        [asked.compose(job) for job in grid(asked.searched)]


def test_a_key_that_does_not_exist_is_named_with_the_nearest() -> None:
    asked = multirun("train.epoch=1,2")
    with pytest.raises(
        RequestError, match=r"job 0 .*train.epoch: no such key; did you mean epochs"
    ):
        asked.compose(grid(asked.searched)[0])


def test_the_command_of_a_job_repeats_it_without_the_sweep() -> None:
    asked = multirun(
        "sweep=lr_grid", "sweep.keep_models=1", "train.epochs=2", "hydra.launcher.n_jobs=2"
    )
    assert asked.command(grid(asked.searched)[1]) == (
        "python -m pipeline train.epochs=2 optimizer.learning_rate=0.0003 model.dropout=0.3"
    )


def test_parameters_are_shown_by_the_last_part_of_their_keys() -> None:
    assert shown({"optimizer.learning_rate": "1e-3", "seed": "0"}) == "learning_rate=1e-3, seed=0"


@pytest.mark.parametrize(
    "text", ["plain", "a 'quoted' word", "a=1,b=2", "ends in \\", "a \\'", "${seed}", '"', "[x](y)"]
)
def test_a_quoted_text_comes_back_from_hydra_as_it_was(text: str) -> None:
    [override] = OverridesParser.create().parse_overrides([f"tracking.run_name={quoted(text)}"])
    assert override.value() == text.replace("${", "\\${")  # which OmegaConf then takes back


def trial(index: int, state: str) -> Outcome:
    return Outcome(index=index, state=state, params={}, values=(0.5,))


def test_a_resumed_grid_runs_what_has_not_finished_under_the_same_numbers() -> None:
    source = Grid(grid(multirun("seed=range(0,5)").searched))
    ended = [FINISHED, FAILED, KILLED, FINISHED]
    source.catch_up({index: trial(index, state) for index, state in enumerate(ended)})
    assert [job.index for job in source.jobs()] == [1, 2, 4]
    assert source.total == 5
    assert PRUNED not in ended


@pytest.mark.parametrize(
    ("text", "short"),
    [("0.0001", "0.0001"), ("0.00014016907816835644", "0.0001402"), ("a_long_name", "a_long_name")],
)
def test_long_numbers_are_shown_in_brief(text: str, short: str) -> None:
    assert shown({"optimizer.learning_rate": text}) == f"learning_rate={short}"
