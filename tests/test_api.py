"""The pipeline from Python, as a notebook or a script uses it."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase, getbase
from packaging.version import Version

import pipeline
from pipeline.config import trusted
from pipeline.verbs import Verb
from tests.commands import CONF, LEAN, configured, environment, inside

SMALL = ("dataset=digits", "model=linear", "train.epochs=2", *LEAN)
LENIENT = {"min_test_accuracy": 0.1, "min_class_recall": 0.0, "max_ece": 1.0}


def fresh(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints for some code."""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=cwd
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_import_brings_nothing_along_and_lists_every_public_name(tmp_path: Path) -> None:
    heavy = "('hydra', 'keras', 'tensorflow', 'mlflow', 'numpy', 'pydantic')"
    told = fresh(
        f"import sys, pipeline; print([n for n in {heavy} if n in sys.modules]);"
        "print(set(pipeline.__all__) <= set(dir(pipeline)))",
        tmp_path,
    )
    assert told == "[]\nTrue\n"


def test_the_import_takes_no_tenth_of_a_second() -> None:
    module = sys.modules.pop("pipeline")
    try:
        started = time.process_time()
        import pipeline as again

        assert time.process_time() - started < 0.1
        assert again is not module
    finally:
        sys.modules["pipeline"] = module


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(pipeline, name).__doc__


def test_a_class_is_found_by_its_former_name_too() -> None:
    assert pipeline.Report is pipeline.Evaluation


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = pipeline.nothing


def test_compose_works_from_any_folder_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = pipeline.compose("seed=3", "model=cnn"), pipeline.compose()
    assert (first.seed, first.choices.model) == (3, "cnn")
    assert (second.seed, second.choices.model) == (0, "mlp")
    assert not GlobalHydra.instance().is_initialized()
    assert list(tmp_path.iterdir()) == []


def test_compose_leaves_a_running_application_of_hydra_as_it_was() -> None:
    with initialize_config_dir(config_dir=str(CONF / "optimizer"), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        assert pipeline.compose("seed=4").seed == 4
        assert GlobalHydra.instance().hydra is theirs
        assert hydra_compose("adam").learning_rate == 0.001


@dataclass
class Theirs:
    width: int = 3


@pytest.mark.parametrize("words", [(), ("hydra.searchpath=[]",)])
def test_compose_takes_nothing_from_another_applications_store_and_leaves_it_as_it_was(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", {**store.repo})
    monkeypatch.setattr(VersionBase.instance(), "version_base", getbase())
    store.store(name="config", node=Theirs)
    store.store(group="model", name="cnn", node=Theirs)
    store.store(group="project", name="default", node={"train": {"epochs": 7}}, package="_global_")
    with initialize_config_dir(str(CONF / "optimizer"), job_name="theirs", version_base="1.2"):
        config = pipeline.compose("model=cnn", "optimizer=lion", "schedule=cosine", *words)
        assert (config.choices.model, config.train.epochs) == ("cnn", 20)
        assert (JobRuntime.instance().get("name"), getbase()) == ("theirs", Version("1.2"))
        assert {"config.yaml", "model", "project"} <= {*store.repo}


@pytest.mark.parametrize(
    ("verb", "settings", "asked"),
    [
        ("promote", {"margin": np.float32(0.5), "challenger": np.bool_(True)}, (0.5, True)),
        ("compare", {"top": np.int64(3), "metric": np.str_("val/loss")}, (3, "val/loss")),
    ],
)
def test_settings_of_verbs_may_be_numbers_and_arrays_of_numpy(
    verb: str, settings: dict[str, Any], asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(Verb, "require_effects", lambda *given: seen.append(given[-1]))
    monkeypatch.setattr(Verb, "require_possible", lambda *given: None)
    monkeypatch.setattr(Verb, "carry_out", lambda *given: None)
    argument = ["ab12"] if verb == "promote" else []
    getattr(pipeline, verb)(*argument, config=configured("dataset=digits"), **settings)
    found = tuple(getattr(seen[0], key) for key in settings)
    assert found == asked
    assert [type(one) for one in found] == [type(one) for one in asked]


def test_threads_compose_each_its_own_configuration() -> None:
    models = ["cnn", "mlp", "linear", "resnet"]
    with ThreadPoolExecutor(len(models)) as threads:
        configs = [*threads.map(lambda model: pipeline.compose(f"model={model}"), models)]
    assert [config.choices.model for config in configs] == models
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("train.epoch=3", "train.epoch: no such key; did you mean epochs?"),
        ("train.epochs=0", "train.epochs: must be at least 1"),
        ("model=cnnn", "model=cnnn: no such choice; did you mean cnn?"),
        ("model._target_=os.system", "model._target_: 'os.system' is not allowed"),
        ("--multirun", "--multirun: settings are written key=value"),
        ("hydra.searchpath=[pkg://shutil]", "pkg://shutil would be imported"),
        ("seed=${oc.env:HOME}", "could not be converted to Integer; write a whole number"),
    ],
)
def test_compose_refuses_with_the_message_of_the_command_line(word: str, says: str) -> None:
    with pytest.raises(pipeline.RequestError) as refused:
        pipeline.compose(word)
    assert says in str(refused.value)
    assert isinstance(refused.value, pipeline.PipelineError)


@pytest.mark.slow
def test_a_file_whose_header_cannot_be_read_is_refused_with_how_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "conf" / "experiment" / "mine.yaml"
    place.parent.mkdir(parents=True)
    place.write_text("# @\n")
    with pytest.raises(pipeline.RequestError, match="# @: a line .* # @package _global_"):
        pipeline.compose("experiment=mine")


@pytest.mark.slow
def test_the_steps_pass_values_to_each_other_and_record_nothing(tmp_path: Path) -> None:
    with inside(tmp_path):
        config = pipeline.compose(*SMALL)
        prepared = pipeline.load_data(config)
        model = pipeline.build_model(config, prepared)
        seen: list[int] = []
        fitted = pipeline.train(
            config,
            prepared,
            model=model,
            folder=tmp_path / "work",
            listeners=[lambda epoch, metrics: seen.append(epoch)],
        )
        evaluation = pipeline.evaluate(fitted.model, config, prepared)
        probs = pipeline.predict(fitted.model, np.asarray(prepared.test.images)[prepared.test.rows])
        assert seen == [1, 2]
        assert fitted.model is model
        assert probs.shape == (len(prepared.test), 10)
        accuracy = (probs.argmax(axis=1) == prepared.test.labels).mean()
        assert evaluation.metrics["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)
        validated = pipeline.evaluate(fitted.model, config, prepared, split="val").metrics
        assert validated["val/accuracy"] == pytest.approx(fitted.history["val/accuracy"][-1])
        assert not (tmp_path / "mlflow.db").exists()
        with pytest.raises(pipeline.RequestError, match=r"takes u8\[N,8,8,1\], not float32\[1,8,8"):
            pipeline.predict(fitted.model, np.zeros((1, 8, 8, 1), np.float32))
        with pytest.raises(pipeline.RequestError, match="split=tset: choose one of train, val"):
            pipeline.evaluate(fitted.model, config, prepared, split="tset")


@pytest.mark.slow
def test_a_given_model_is_compiled_as_configured_each_time_it_is_trained(tmp_path: Path) -> None:
    import keras

    with inside(tmp_path):
        config = pipeline.compose(*SMALL, "optimizer=adam", "schedule=cosine")
        prepared = pipeline.load_data(config)
        images = keras.Input(prepared.image_shape)  # not compiled, and of floats
        x = keras.layers.Flatten()(images / 255)
        model = keras.Model(images, keras.layers.Dense(10, activation="softmax")(x))
        steps = config.train.epochs * math.ceil(len(prepared.train) / config.train.batch_size)
        for _ in range(2):
            fitted = pipeline.train(config, prepared, model=model)
            optimizer = fitted.model.optimizer
            assert type(optimizer) is keras.optimizers.Adam
            assert int(optimizer.iterations) == steps
            assert float(optimizer.learning_rate) == 0  # at the end of the schedule
        assert 0 <= pipeline.evaluate(model, config, prepared).metrics["test/accuracy"] <= 1


@pytest.mark.slow
def test_a_model_of_open_size_predicts_what_it_was_trained_on(tmp_path: Path) -> None:
    import keras

    with inside(tmp_path):
        config = pipeline.compose(*SMALL, "preprocess.limit=20")
        prepared = pipeline.load_data(config)
        images = keras.Input((None, None, 1))
        x = keras.layers.GlobalAveragePooling2D()(images / 255)
        model = keras.Model(images, keras.layers.Dense(10, activation="softmax")(x))
        fitted = pipeline.train(config, prepared, model=model)
        assert pipeline.predict(fitted.model, prepared.test.batch(0, 2)).shape == (2, 10)
        with pytest.raises(pipeline.RequestError, match=r"takes u8\[N,None,None,1\], not uint8"):
            pipeline.predict(fitted.model, np.zeros((1, 8, 8, 3), np.uint8))


@pytest.mark.slow
def test_a_given_model_must_take_the_images_and_give_probabilities(tmp_path: Path) -> None:
    import keras

    layers = keras.layers

    class Net(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = layers.Dense(10, activation="softmax")

        def call(self, images: Any) -> Any:
            return self.model(layers.Flatten()(images))

    pair = [keras.Input((8, 8, 1)), keras.Input((8, 8, 1))]
    flat = layers.Flatten()(pair[0])
    soft = layers.Dense(10, activation="softmax")
    with inside(tmp_path):
        config = pipeline.compose(*SMALL, "preprocess.limit=20")
        prepared = pipeline.load_data(config)
        for model, told in (
            (Net(), "a graph of layers with one input"),
            (keras.Model(pair, soft(flat + layers.Flatten()(pair[1]))), "with one input"),
            (keras.Model(pair[0], layers.Dense(10)(flat)), "its outputs are not probabilities"),
            (keras.Model(pair[0], layers.Softmax()(flat)), r"gives \(None, 64\)"),
            (
                keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten()]),
                r"images \(28, 28, 1\), not \(8, 8, 1\)",
            ),
        ):
            with pytest.raises(pipeline.RequestError, match=told):
                pipeline.train(config, prepared, model=model)
        with pytest.raises(pipeline.RequestError, match="a graph of layers with one input"):
            pipeline.predict(Net(), prepared.test.batch(0, 2))
        without_shape = keras.Sequential([layers.Flatten(), soft])
        fitted = pipeline.train(config, prepared, model=without_shape)
        assert repr(fitted).startswith("Fitted(epoch 2 kept: train/accuracy=0.")
        assert pipeline.predict(without_shape, prepared.test.batch(0, 2)).shape == (2, 10)


OWN = """
from pipeline.data.values import Predictions

def {name}(predictions: Predictions) -> float:
    return 0.25
"""


@pytest.fixture
def own_metrics() -> Iterator[tuple[str, ...]]:
    """Ends of the names of modules that a test makes and trusts, which are forgotten after it."""
    names = ("mine", "recorded")
    yield names
    trusted.trust([])
    for name in names:
        sys.modules.pop(f"metrics_of_{name}", None)


def test_a_configuration_keeps_its_own_modules_whatever_is_composed_after_it(
    own_metrics: tuple[str, ...], tmp_path: Path
) -> None:
    with inside(tmp_path):
        for name in own_metrics:
            Path(f"metrics_of_{name}.py").write_text(OWN.format(name=name))
        words = (*SMALL, "trusted_modules=[metrics_of_mine]")
        config = pipeline.compose(*words, "evaluate.metrics=[accuracy,metrics_of_mine.mine]")
        later = pipeline.compose(*SMALL)
        prepared = pipeline.load_data(config)
        model = pipeline.build_model(later, prepared)
        assert pipeline.evaluate(model, config, prepared).metrics["test/mine"] == 0.25
        with pytest.raises(pipeline.RequestError, match="no such model"):
            pipeline.predict("models:/nothing@champion", np.zeros((0, 8, 8, 1), np.uint8))
        assert trusted.trusted() == ["metrics_of_mine"]
        # As in the configuration of a recorded run, whose modules nobody trusted here.
        foreign = replace(config, trusted_modules=["metrics_of_recorded"])
        foreign.evaluate = replace(config.evaluate, metrics=["metrics_of_recorded.recorded"])
        said = r"add trusted_modules=\[metrics_of_recorded\]"
        with pytest.raises(pipeline.RequestError, match=said):
            pipeline.evaluate(model, foreign, prepared)


def test_the_function_run_keeps_its_name_when_its_module_is_imported() -> None:
    import pipeline.run
    from pipeline.run import run as story

    assert pipeline.run is not story
    assert callable(pipeline.run)
    assert "run" in dir(pipeline)


@pytest.mark.slow
def test_a_run_without_a_store_has_its_model_predictions_and_configuration(tmp_path: Path) -> None:
    with inside(tmp_path):
        alone = pipeline.compose(*SMALL, "tracking.offline=true")
        run = pipeline.run(alone, folder=tmp_path / "alone")
        assert run.model_uri == str(tmp_path / "alone" / "model")
        probs = pipeline.predict(run.load_model(), pipeline.load_data(alone).test.batch(0, 5))
        stored = run.predictions()["test"].probabilities[:5]
        np.testing.assert_allclose(probs, stored, atol=1e-6)
        assert run.config.choices.model == "linear"
        assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_a_run_of_another_folder_has_its_model_though_another_store_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with inside(tmp_path / "one"):
        run = pipeline.run(pipeline.compose(*SMALL))
    with inside(tmp_path / "two"):
        assert pipeline.find_runs(config=pipeline.compose(*SMALL)) == []
        assert run.load_model().output_shape == (None, 10)
        away = replace(run, store="http://127.0.0.1:1")
        with pytest.raises(pipeline.PipelineError, match="store http://127.0.0.1:1 cannot be used"):
            away.load_model()


def test_an_empty_list_of_runs_is_not_taken_for_the_best_ones() -> None:
    with pytest.raises(pipeline.RequestError, match="runs: there are none; name two runs or more"):
        pipeline.compare([])


@pytest.mark.parametrize("runs", ["abcd", SimpleNamespace(id="abcd"), ["abcd", None]])
def test_what_is_no_list_of_runs_is_refused(runs: Any) -> None:
    with pytest.raises(pipeline.RequestError, match=r"^runs: give a list of runs or of their ids"):
        pipeline.compare(runs)


@pytest.mark.slow
def test_from_two_runs_to_a_comparison_and_a_champion(tmp_path: Path) -> None:
    with inside(tmp_path):
        runs = [pipeline.run(pipeline.compose(*SMALL, f"seed={seed}")) for seed in (1, 2)]
        config = pipeline.compose("dataset=digits")
        assert [run.id for run in pipeline.find_runs(finished=True, config=config)] == [
            run.id for run in runs
        ]
        assert pipeline.find_run(runs[0].id[:8], config=config).config.seed == 1
        compared = pipeline.compare(runs, metric="test/accuracy", resamples=100)
        assert compared.runs == 2
        assert all(Path(file).exists() for file in compared.files)
        refused = pipeline.promote(runs[0], min_test_accuracy=1.0, config=config)
        assert refused.refused
        assert "test accuracy" in refused.says
        decision = pipeline.promote(runs[0], config=config, **LENIENT)
        assert (decision.refused, decision.version, decision.run_id) == (False, 1, runs[0].id)
        champion = pipeline.load_champion("digits")
        assert champion.image_shape == (8, 8, 1)
        told = "LoadedModel(models:/digits@champion: images 8×8×1 → 10 classes)"
        assert repr(champion) == told
        probs = pipeline.predict(champion, np.zeros((3, 8, 8, 1), np.uint8))
        assert probs.shape == (3, 10)
        assert probs.sum(axis=1) == pytest.approx(1, abs=1e-5)
        again = pipeline.predict("models:/digits@champion", np.zeros((3, 8, 8, 1), np.uint8))
        np.testing.assert_array_equal(probs, again)
        with pytest.raises(pipeline.RequestError, match="compare.resamples"):
            pipeline.compare(runs, resamples=1)
        with pytest.raises(pipeline.RequestError, match="no such run"):
            pipeline.find_run("0123456789abcdef0123456789abcdef", config=config)
