from __future__ import annotations

import random
import re
import shlex
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode

from pipeline.config.schema import register
from pipeline.config.search_path import searching
from pipeline.config.words import left_to_jobs, quoted
from pipeline.sweeps.jobs import (
    Grid,
    Job,
    Multirun,
    asked_for,
    grid,
    job_name,
    short_keys,
    swept_values,
)
from pipeline.sweeps.outcomes import FAILED, FINISHED, KILLED, PRUNED, Outcome
from pipeline.system.errors import RequestError
from pipeline.verbs import requests
from tests.commands import CONF

pytestmark = pytest.mark.slow


def multirun(*words: str, adaptive: bool = True, name: str = "config") -> Multirun:
    """What Hydra would hand to the sweeper for these words and the primary file of this name."""
    register(requests())
    setup_globals()
    loader = ConfigLoaderImpl(config_search_path=create_config_search_path(str(CONF)))
    words = tuple(left_to_jobs(words))
    composed = loader.load_configuration(name, list(words), run_mode=RunMode.MULTIRUN)
    handed = [word for word in words if not word.startswith("hydra")]  # Hydra keeps its own
    return asked_for(handed, composed, loader, adaptive=adaptive)


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def params(jobs: Sequence[Job]) -> list[list[str]]:
    return [list(job.params.values()) for job in jobs]


def test_a_grid_is_every_combination_the_last_key_changing_fastest() -> None:
    jobs = grid(multirun("train.epochs=1,2", "model=mlp,cnn", "seed=5").searched)
    assert [job.index for job in jobs] == [0, 1, 2, 3]
    assert jobs[1].overrides == ["train.epochs=1", "model=cnn"]
    assert params(jobs) == [["1", "mlp"], ["1", "cnn"], ["2", "mlp"], ["2", "cnn"]]


def test_ranges_and_choices_and_names_of_a_group_are_listed() -> None:
    asked = multirun("seed=range(0,5,2)", "train.xla=true,null", "model=glob(?l*)")
    assert params(grid(asked.searched))[:2] == [["0", "True", "mlp"], ["0", "null", "mlp"]]
    assert len(grid(asked.searched)) == 6


def test_parameters_kept_in_a_file_are_searched_unless_the_command_line_says_otherwise() -> None:
    kept = multirun("sweep=lr_grid")
    assert len(grid(kept.searched)) == 6
    fewer = multirun("sweep=lr_grid", "model.dropout=0.2")
    assert params(grid(fewer.searched)) == [["0.0003"], ["0.001"], ["0.003"]]
    assert fewer.fixed == ["sweep=lr_grid", "model.dropout=0.2"]
    other = multirun("sweep=lr_grid", "model.dropout=0.2,0.4,0.6")
    assert len(grid(other.searched)) == 9


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{seed: [0, 1]}", 'seed: values are one text, as on the command line: seed: "0,1"'),
        ("{model.hidden: [[64], [8, 4]], seed: 0}", 'line: model.hidden: "[64],[8, 4]"'),
        ("{optimizer: {learning_rate: '1e-3,1e-2'}}", "in full: optimizer.learning_rate"),
    ],
)
def test_values_in_a_file_as_a_list_or_a_mapping_are_told_how_to_be_written(
    written: str, said: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        multirun("seed=0,1", f"+sweep.params={written}")


@pytest.mark.parametrize("words", [(), ("train.epochs=2",), ("sweep=tpe",)])
def test_a_sweep_over_nothing_is_refused_with_an_example(words: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match=r"nothing to sweep over[\s\S]*seed=0,1,2"):
        multirun(*words)


# What a sweep decides itself, or cannot heed: the words, and what the refusal says.
WITHOUT_EFFECT = {
    "tracking.experiment=a,b": "cannot be searched: all jobs of a sweep are recorded in its exp",
    "tracking.run_name=a,b": "cannot be searched: jobs are named by what they try",
    "tracking.uri=a,b": "cannot be searched: all jobs of a sweep are recorded in one store",
    "evaluate.test=true,false": "cannot be searched: the best sweep.keep_models are evaluated",
    "data_dir=a,b": "cannot be searched: all jobs of a sweep share one cache",
    "sweep.keep_models=1,2": "cannot be searched: it is about the sweep as a whole",
    "sweep.timeout_s=range(1,3)": "cannot be searched: it is about the sweep as a whole",
    "sweep.params.model=mlp,cnn": (
        "cannot be searched: it is about the sweep as a whole; write model=mlp,cnn, or quote the "
        """values: "+sweep.params={model: 'mlp,cnn'}\""""
    ),
    "sweep=lr_grid,tpe": "cannot be searched: it is about the sweep as a whole",
    "tracking.log_model=false": "has no effect in a sweep: sweep.keep_models says how many",
    "hydra.sweep.subdir=x": "has no effect in a sweep: a job's folder has its number",
    "hydra.run.dir=x": "has no effect in a sweep: a sweep's folder is hydra.sweep.dir",
    "run_id=abcd": "has no effect in a sweep: it names a recorded run",
    "run_id=abcd,bcde": "has no effect in a sweep: it names a recorded run",
    "choices.model=cnn": "has no effect in a sweep: Hydra fills it in",
    "sweep.job.index=3": "has no effect in a sweep: the sweep fills it in",
    "promote.max_ece=0.2": "has no effect in a sweep: promote belongs to another verb",
    "compare.sweep=latest,abcd": "has no effect in a sweep: compare belongs to another verb",
    "sweep.n_trials=4": "has no effect on a grid: only an adaptive search uses it",
    "sweep.storage=x.journal": "has no effect on a grid",
    "sweep.sampler=random": "has no effect on a grid",
}


@pytest.mark.parametrize("word", WITHOUT_EFFECT)
def test_a_word_without_effect_in_a_sweep_is_refused_with_the_reason(word: str) -> None:
    with pytest.raises(RequestError) as refused:
        multirun("seed=0,1", word, adaptive=False)
    assert str(refused.value).startswith(f"{word} {WITHOUT_EFFECT[word]}")


@pytest.mark.parametrize("key", ["seed", "model.dropout", "optimizer.learning_rate"])
def test_the_word_that_is_said_to_set_a_key_of_the_parameters_works(key: str) -> None:
    with pytest.raises(RequestError, match="quote the values: ") as refused:
        multirun("sweep=lr_grid", f"sweep.params.{key}=1,2")
    [word] = shlex.split(str(refused.value).partition("quote the values: ")[2])
    asked = multirun("sweep=lr_grid", word)
    assert {one.get_key_element(): swept_values(one) for one in asked.searched} == {
        "optimizer.learning_rate": ["0.0003", "0.001", "0.003"],
        "model.dropout": ["0.1", "0.3"],
    } | {key: ["1", "2"]}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.learning_rate=tag(lgo,interval(1e-4,1e-2))", "no tag lgo; the only one is log"),
        ("seed=tag(log,choice(1,2))", "for intervals and ranges, not for a choice"),
    ],
)
def test_a_tag_without_effect_is_refused(word: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        multirun(word)


def test_a_number_of_failures_without_effect_is_refused() -> None:
    words = ("seed=0,1", "sweep.on_failure=stop", "sweep.max_failures=3")
    with pytest.raises(RequestError, match="sweep.max_failures=3 has no effect beside"):
        multirun(*words)
    assert multirun(*words[::2]).config.sweep.max_failures == 3


@pytest.mark.parametrize(
    "twice",
    [("seed=0,1", "seed=7"), ("seed=0,1", "seed=2,3"), ("seed=7", "+seed=0,1")],
)
def test_a_key_that_is_given_twice_is_refused_with_both(twice: tuple[str, str]) -> None:
    with pytest.raises(RequestError, match="give seed once") as refused:
        multirun("train.epochs=1,2", *twice)
    assert all(word in str(refused.value) for word in twice)


def test_what_a_sweep_heeds_is_not_refused() -> None:
    words = ("sweep.keep_models=1", "tracking.experiment=mine", "tracking.run_name=my sweep")
    asked = multirun("seed=0,1", *words, "hydra.sweep.dir=there", "hydra.launcher.n_jobs=2")
    assert asked.config.tracking.run_name == "my sweep"
    assert asked.words(grid(asked.searched)[0]) == [*words, "seed=0"]


@pytest.mark.parametrize(
    "word",
    ["trusted_modules=[my_models]", "ingest.checks.conflicts.action=refuse", "data_dir=there"],
)
def test_what_each_job_heeds_is_passed_on_though_no_result_depends_on_it(word: str) -> None:
    asked = multirun("seed=0,1", word, adaptive=False)
    assert asked.words(grid(asked.searched)[1]) == [word, "seed=1"]


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("hydra: {launcher: {n_jobs: 4}}", "hydra.launcher.n_jobs"),
        ("sweep: {keep_models: 9}", "sweep.keep_models"),
        ("tracking: {experiment: other}", "tracking.experiment"),
        ("hydra: {job: {chdir: true}}", "hydra.job.chdir"),
    ],
)
def test_a_file_that_jobs_try_may_not_set_what_the_sweep_decides(
    said: str, key: str, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    for name, text in (("a", "train: {epochs: 7}"), ("b", said)):
        (tmp_path / f"experiment/{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    asked = multirun("experiment=a,b", f"hydra.searchpath=[file://{tmp_path}]")
    first, second = grid(asked.searched)
    assert asked.compose(first).train.epochs == 7
    with pytest.raises(RequestError, match=rf"job 1 \(experiment=b\): its file sets {key}: "):
        asked.compose(second)


def test_a_fixed_key_that_only_the_swept_files_have_is_checked_in_each_job() -> None:
    asked = multirun("optimizer=sgd,rmsprop", "optimizer.momentum=0.9", "train.epochs=2")
    assert asked.fixed == ["optimizer.momentum=0.9", "train.epochs=2"]
    configs = [asked.compose(job) for job in grid(asked.searched)]
    assert [config.optimizer["momentum"] for config in configs] == [0.9, 0.9]
    wrong = multirun("optimizer=sgd,adam", "optimizer.momentum=0.9")
    first, second = grid(wrong.searched)
    wrong.compose(first)
    with pytest.raises(
        RequestError, match=r"job 1 \(optimizer=adam\): optimizer.momentum: no such"
    ):
        wrong.compose(second)


def test_a_fixed_null_for_a_key_that_only_the_swept_files_have_reaches_the_jobs() -> None:
    both = ("model=efficientnet_lite0,efficientnet_lite1", "model.trainable=all")
    asked = multirun(*both, "model.weights=null")
    assert asked.fixed == ["model.trainable=all", "model.weights=null"]
    configs = [asked.compose(job) for job in grid(asked.searched)]
    assert [config.model["weights"] for config in configs] == [None, None]


def test_the_sweep_itself_has_the_other_fixed_values_beside_one_that_only_jobs_have() -> None:
    others = ("train.epochs=5", "evaluate.test=false", "optimizer.learning_rate=1e-2")
    asked = multirun("optimizer=sgd,rmsprop", "optimizer.momentum=0.9", *others)
    assert asked.unplaced == {"optimizer.momentum": "0.9"}
    assert (asked.config.train.epochs, asked.config.evaluate.test) == (5, False)
    assert asked.config.optimizer["learning_rate"] == 0.01
    configs = [asked.compose(job) for job in grid(asked.searched)]
    assert [config.evaluate.test for config in configs] == [False, False]


def test_a_fixed_key_of_what_an_experiment_sweeps_is_checked_in_each_job(tmp_path: Path) -> None:
    swept = "# @package _global_\nsweep: {params: {model: 'resnet,depthwise'}}\n"
    written(tmp_path / "experiment/mine.yaml", swept)
    with searching(tmp_path):
        asked = multirun("experiment=mine", "model.blocks=1", "train.epochs=2")
        assert asked.config.train.epochs == 2
        configs = [asked.compose(job) for job in grid(asked.searched)]
        assert [config.model["blocks"] for config in configs] == [1, 1]
        with pytest.raises(ConfigCompositionException, match="model.blocks"):
            multirun("experiment=mine", "model=mlp", "model.blocks=1", "seed=0,1")


@pytest.mark.parametrize(
    "word",
    ["train.plots=[loss, weights]", "train.patience=null", "+train.xla=true"],
)
def test_a_fixed_value_reaches_the_jobs_as_it_was_typed(word: str) -> None:
    asked = multirun("model=mlp,cnn", word, "optimizer.learning_rate=0.10")
    assert asked.fixed == [word, "optimizer.learning_rate=0.10"]
    assert asked.config.optimizer["learning_rate"] == 0.1


# --- ranges ---


def decimals(start: Decimal, stop: Decimal, step: Decimal) -> list[float]:
    found = []
    while start < stop if step > 0 else start > stop:
        found.append(float(start))
        start += step
    return found


def tried(text: str) -> list[float]:
    [override] = OverridesParser.create().parse_overrides([f"x={text}"])
    return [float(value) for value in swept_values(override)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sort(range(1.3,0,-0.5))", ["0.3", "0.8", "1.3"]),
        ("range(1.3,0,-0.5)", ["1.3", "0.8", "0.3"]),
        ("range(0.1,0.4,0.1)", ["0.1", "0.2", "0.3"]),
        ("sort(range(0,1,0.25),reverse=true)", ["0.75", "0.5", "0.25", "0.0"]),
        ("range(3)", ["0", "1", "2"]),
        ("range(start=1,stop=7,step=3)", ["1", "4"]),
        ("float(range(1,3))", ["1.0", "2.0"]),
        ("int(range(1.0,3.0))", ["1", "2"]),
        ("tag(a, range(1e-3, 4e-3, 1e-3))", ["0.001", "0.002", "0.003"]),
    ],
)
def test_a_range_has_the_numbers_that_its_decimals_say(text: str, expected: list[str]) -> None:
    [override] = OverridesParser.create().parse_overrides([f"x={text}"])
    assert swept_values(override) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("range(0,1,0)", "the step of a range must not be 0"),
        ("range(0,1e9)", "a range may have at most 100,000 numbers"),
        ("range(0,inf)", "finite"),
        ("int(range(0,2,0.5))", r"int\(\) would change the numbers"),
        ("range(0,1,0.1234567890123456)", "more than 15 digits"),
        ("range(int(1.5),4)", "write the numbers of the range plainly"),
    ],
)
def test_a_range_that_cannot_be_exact_is_refused(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        tried(text)


def test_ranges_equal_decimal_arithmetic_whatever_their_ends() -> None:
    draw = random.Random(0)
    for _ in range(300):
        places = draw.randint(0, 4)
        start, stop = (Decimal(draw.randint(-300, 300)).scaleb(-places) for _ in range(2))
        step = Decimal(draw.choice([-1, 1]) * draw.randint(7, 90)).scaleb(-places)
        expected = decimals(start, stop, step)
        if not expected:
            continue
        assert tried(f"range({start},{stop},{step})") == expected
        assert tried(f"sort(range({start},{stop},{step}))") == sorted(expected)
        backwards = sorted(expected, reverse=True)
        assert tried(f"sort(range({start},{stop},{step}), reverse=true)") == backwards


def test_a_grid_without_end_is_refused_in_no_time() -> None:
    with pytest.raises(RequestError, match="1,000,000 jobs: a grid may have at most 100,000"):
        grid(multirun("seed=range(0,1000)", "train.epochs=range(1,1001)").searched)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(RequestError, match=r"seed=range\(3,3\): has no value to try"):
        grid(multirun("seed=range(3,3)").searched)


def test_an_interval_is_no_part_of_a_grid() -> None:
    with pytest.raises(RequestError, match=r"interval\(0,0.5\).*hydra/sweeper=search"):
        grid(multirun("model.dropout=interval(0,0.5)").searched)


def test_a_job_is_composed_and_checked() -> None:
    asked = multirun("model=mlp,cnn", "optimizer.learning_rate=0.1,0.2", "seed=7")
    config = asked.compose(grid(asked.searched)[3])
    assert (config.choices.model, config.optimizer["learning_rate"], config.seed) == ("cnn", 0.2, 7)


def test_a_bad_value_names_its_job() -> None:
    asked = multirun("model.dropout=0.1,0.2,1.5")
    with pytest.raises(
        RequestError, match=r"job 2 \(dropout=1.5\): model.dropout: must be below 1"
    ):
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


def test_the_command_of_a_job_leaves_out_what_is_taken_out_of_the_sweeps_settings() -> None:
    without = "~sweep.pruner_options.n_warmup_steps"
    asked = multirun("sweep=tpe", without, "model.dropout=0.1,0.2")
    assert asked.command(grid(asked.searched)[1]) == "python -m pipeline model.dropout=0.2"


def test_the_command_of_a_job_says_where_its_files_are(tmp_path: Path) -> None:
    own, more = tmp_path / "own config", tmp_path / "more"
    written(own / "primary.yaml", "defaults: [config, _self_]\n")
    written(more / "model/mine.yaml", (CONF / "model/mlp.yaml").read_text())
    with searching(own):
        path = f"hydra.searchpath=[file://{more}]"
        asked = multirun("model=mine", "seed=0,1", path, name="primary")
        assert asked.command(grid(asked.searched)[1]) == (
            f"python -m pipeline '--config-dir={own}' --config-name=primary '{path}' "
            "model=mine seed=1"
        )


def test_the_command_of_a_job_leaves_out_what_has_an_effect_in_other_jobs_only() -> None:
    asked = multirun("train.epochs=2,20", "train.patience=5")
    assert [asked.command(job).partition("train.epochs=")[0] for job in grid(asked.searched)] == [
        "python -m pipeline ",
        "python -m pipeline train.patience=5 ",
    ]


def test_a_job_is_named_by_the_last_part_of_its_keys_as_far_as_that_is_clear() -> None:
    assert job_name({"optimizer.learning_rate": "1e-3", "seed": "0"}) == "lr=1e-3 seed=0"
    assert job_name({"train.seed": "1", "seed": "0"}) == "train.seed=1 seed=0"
    assert job_name({"preprocess.seed": "1", "train.epochs": "2"}) == "preprocess.seed=1 epochs=2"
    assert job_name({"a.b.size": "1", "c.b.size": "2", "+d.size": "3"}) == (
        "a.b.size=1 c.b.size=2 d.size=3"
    )
    assert short_keys(["optimizer.learning_rate", "schedule.lr"]) == {
        "optimizer.learning_rate": "optimizer.learning_rate",
        "schedule.lr": "schedule.lr",
    }


@pytest.mark.parametrize(
    "text", ["plain", "a 'quoted' word", "a=1,b=2", "ends in \\", "a \\'", "${seed}", '"', "[x](y)"]
)
def test_a_quoted_text_comes_back_from_hydra_as_it_was(text: str) -> None:
    [override] = OverridesParser.create().parse_overrides([f"tracking.run_name={quoted(text)}"])
    assert override.value() == text.replace("${", "\\${")  # which OmegaConf then takes back


def trial(index: int, state: str) -> Outcome:
    return Outcome(index=index, status=state, params={}, values=(0.5,))


def test_a_resumed_grid_runs_what_has_not_finished_under_the_same_numbers() -> None:
    source = Grid(grid(multirun("seed=range(0,5)").searched))
    ended = [FINISHED, FAILED, KILLED, FINISHED]
    source.catch_up({index: trial(index, state) for index, state in enumerate(ended)})
    assert [job.index for job in source.jobs()] == [1, 2, 4]
    assert source.total == 5
    assert PRUNED not in ended


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("0.0001", "0.0001"),
        ("0.00014016907816835644", "0.0001402"),
        ("a_long_name", "a_long_name"),
        ("4294967295", "4294967295"),
        ("-1234567890", "-1234567890"),
        (f"[{'12e4' * 8},{'abcd' * 8}]", "[12e412e4,abcdabcd]"),
    ],
)
def test_long_numbers_and_ids_are_shown_in_brief(text: str, short: str) -> None:
    assert job_name({"optimizer.learning_rate": text}) == f"lr={short}"
