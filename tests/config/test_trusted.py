"""Modules of the user's own: named by a configuration once they are trusted, never before."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import keras
import pytest

from pipeline import api
from pipeline.config import trusted
from pipeline.config.builders import AVERAGING, MODULES, POSITIONAL, build
from pipeline.config.schema import validate
from pipeline.config.trusted import public_functions
from pipeline.system.errors import RequestError
from pipeline.training.build import kept
from pipeline.training.saved import load_saved
from tests.commands import QUICK, configured, fresh_pipeline, inside, pipeline
from tests.stress.matrix import matrix

pytestmark = pytest.mark.slow

MODELS = '''
"""A model, a data set, an augmentation, a metric and a plot of somebody's own."""
import pathlib
from pipeline.config.rules import Count, idle
pathlib.Path("imported").touch()


def tiny(images, classes, *, width: Count):
    return ("tiny", images, classes, width)


@idle("width", when=lambda leaf: not leaf["depth"], because="with depth=0", mend="leave it out")
def deep(images, classes, *, width: Count, depth: int): ...
def noise(images, *, sd: float): ...
def birds(*, folder: str): ...
def slow(use_ema=False, *, learning_rate: float):
    from keras.optimizers import SGD
    return type("Slow", (SGD,), {"__module__": __name__})(learning_rate / 2)
def averaged(use_ema=False, ema_momentum=0.9, *, learning_rate: float): ...
averaged.averages = True
def by_name(*, learning_rate: float, use_ema: bool, ema_momentum: float): return use_ema
def rateless(*, momentum: float): ...
def halving(rate, steps, *, to: float): return rate * to
def top2(predictions: "Predictions") -> float: ...
def per_class(predictions: "Predictions") -> dict[str, float]: ...
def picture(predictions: "Predictions") -> "Figure": ...
def accuracy(predictions: "Predictions") -> float: ...


def unannotated(images, classes, *, width): ...
def one_too_few(images, *, width: int): ...
def anything(images, classes, **more): ...
def by_position(images, classes, width: int): ...
def strange(images, classes, *, width: "NoSuchType"): ...
def two(predictions: "Predictions", k: int) -> float: ...
def wrong(predictions: "Predictions") -> str: ...
def bare(predictions): ...
def transfer(images, classes, *, weights: str | None, trainable: bool): ...
class Tiny: ...
def _hidden(images, classes): ...
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(trusted.VARIABLE, raising=False)
    (tmp_path / "my_models.py").write_text(MODELS)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    slow = tmp_path / "conf" / "optimizer" / "slow.yaml"
    slow.parent.mkdir(parents=True)
    slow.write_text("_target_: my_models.slow\nlearning_rate: 0.01\n")
    package = tmp_path / "my_package" / "inner"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("def deep(images, classes): ...\n")
    yield tmp_path
    trusted.trust([])
    for name in ("my_models", "broken", "my_package", "my_package.inner"):
        sys.modules.pop(name, None)


def refusal(*overrides: str) -> str:
    with pytest.raises(RequestError) as caught:
        configured(*overrides)
    return str(caught.value)


TRUST = "trusted_modules=[my_models]"
TINY = ("model=linear", "model._target_=my_models.tiny", "+model.width=3")


def test_a_trusted_builder_is_checked_like_ours_and_built(tmp_path: Path) -> None:
    config = configured(TRUST, *TINY)
    assert config.trusted_modules == ["my_models"]
    assert build(config.model, "images", 10) == ("tiny", "images", 10, 3)
    assert refusal(TRUST, *TINY[:2]) == "model.width: needs a value"
    assert refusal(TRUST, *TINY[:2], "+model.width=0") == "model.width: must be at least 1 (got 0)"
    assert refusal(TRUST, *TINY, "+model.depth=1") == "model.depth: no such parameter (got 1)"
    assert str(tmp_path) not in sys.path


def test_a_builder_of_ones_own_says_which_of_its_settings_have_no_effect() -> None:
    deep = (TRUST, "model=linear", "model._target_=my_models.deep", "+model.width=3")
    with pytest.raises(RequestError) as caught:
        api.compose(*deep, "+model.depth=0")
    assert str(caught.value) == "+model.width=3 has no effect with depth=0; leave it out"
    assert api.compose(*deep, "+model.depth=1").model["width"] == 3


def test_keys_that_mean_something_else_in_a_model_of_ones_own_are_left_to_it() -> None:
    words = ("model=linear", "model._target_=my_models.transfer", "+model.weights=null")
    config = configured(TRUST, *words, "+model.trainable=true")
    assert config.model["trainable"] is True


def test_a_configuration_that_another_thread_composes_withdraws_no_trust() -> None:
    with ThreadPoolExecutor(1) as other:
        assert other.submit(trusted.trusted).result() == []
        config = api.compose(TRUST, *TINY)
        assert other.submit(trusted.trusted).result() == ["my_models"]
        assert other.submit(api.compose, "model=linear").result().trusted_modules == []
        assert other.submit(trusted.trusted).result() == []
        assert trusted.trusted() == ["my_models"]
        assert build(config.model, "images", 10) == ("tiny", "images", 10, 3)


def test_every_kind_of_builder_metric_and_plot_may_be_ones_own() -> None:
    config = configured(
        TRUST,
        "augment._target_=my_models.noise",
        "+augment.sd=0.1",
        "dataset=synthetic",
        "dataset._target_=my_models.birds",
        "+dataset.folder=x",
        *(f"~dataset.{key}" for key in ("train_size", "test_size", "classes", "image_shape")),
        *("~dataset.noise", "~dataset.seed"),
        "evaluate.metrics=[loss,my_models.top2,my_models.per_class]",
        "evaluate.plots=[my_models.picture]",
        "optimizer=slow",
        *("schedule._target_=my_models.halving", "+schedule.to=0.5"),
    )
    assert build(config.schedule, 0.4, 100) == 0.2
    assert config.evaluate.metrics == ["loss", "my_models.top2", "my_models.per_class"]
    assert config.dataset == {"_target_": "my_models.birds", "folder": "x"}


@pytest.mark.parametrize(
    "overrides",
    [
        TINY,
        ("evaluate.metrics=[my_models.top2]",),
        ("evaluate.plots=[my_models.picture]",),
        ("trusted_modules=[my_package]", *TINY),
    ],
)
@matrix(37)
def test_nothing_is_imported_that_is_not_trusted(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    said = refusal(*overrides)
    assert "if you trust the module my_models, add trusted_modules=[my_models]" in said
    assert not (tmp_path / "imported").exists()
    assert "my_models" not in sys.modules


@matrix(37)
def test_nor_is_what_is_trusted_before_it_is_used(tmp_path: Path) -> None:
    configured(TRUST)
    assert not (tmp_path / "imported").exists()


def test_trust_may_come_from_the_environment_and_ends_with_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(trusted.VARIABLE, "my_package, my_models")
    assert configured(*TINY).trusted_modules == ["my_package", "my_models"]
    monkeypatch.delenv(trusted.VARIABLE)
    refusal(*TINY)


def test_a_recorded_run_is_trusted_by_who_reads_it_alone(tmp_path: Path) -> None:
    recorded = asdict(configured(TRUST, *TINY))
    for name in ("my_models", "imported"):
        sys.modules.pop(name, None)
    (tmp_path / "imported").unlink()
    configured()
    with pytest.raises(RequestError, match=r"if you trust the module my_models, add trusted_mod"):
        validate(recorded)
    assert not (tmp_path / "imported").exists()
    configured(TRUST)
    assert validate(recorded).model["_target_"] == "my_models.tiny"


@matrix(37)
def test_a_leaf_that_nobody_has_checked_is_not_built_either(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="my_models"):
        build({"_target_": "my_models.tiny", "width": 3}, 1, 2)
    with pytest.raises(RequestError, match=r"os\.system"):
        build({"_target_": "os.system"}, "touch imported")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("unannotated", "needs annotations, which are the rules for the keys: width"),
        ("one_too_few", "must take what pipeline.training.models.linear does: 2 positional"),
        ("anything", "must take what pipeline.training.models.linear does: 2 positional"),
        ("by_position", "must take what pipeline.training.models.linear does: 2 positional"),
        ("strange", "NameError: name 'NoSuchType' is not defined"),
        ("Tiny", "my_models defines no function Tiny; it has tiny, deep, noise"),
        ("_hidden", "my_models defines no function _hidden; it has tiny, deep, noise"),
        ("Count", "my_models defines no function Count"),
        ("tinny", "my_models defines no function tinny; it has tiny"),
    ],
)
def test_a_builder_that_does_not_look_like_ours_is_refused(name: str, reason: str) -> None:
    said = refusal(TRUST, "model=linear", f"model._target_=my_models.{name}", "+model.width=3")
    assert reason in said


def test_an_optimizer_needs_a_learning_rate() -> None:
    said = refusal(TRUST, "optimizer._target_=my_models.rateless")
    assert said == (
        "optimizer._target_: my_models.rateless needs the parameter learning_rate after a *"
    )
    assert "add trusted_modules=[my_models]" in refusal("optimizer=slow")


def test_an_optimizer_of_ones_own_may_average_weights_and_needs_parameters_for_train_ema() -> None:
    averaged = (TRUST, "optimizer=slow", "optimizer._target_=my_models.averaged")
    configured(*averaged)
    for beside in ("train.ema=0.9", "schedule=cosine"):
        said = refusal(*averaged, beside)
        assert said.startswith(f"optimizer=slow averages weights in place of {beside[:8]}")
    assert refusal(TRUST, "optimizer=slow", "train.ema=0.9") == (
        "train.ema: my_models.slow does not take use_ema and ema_momentum; add these parameters, "
        "or leave train.ema out"
    )


def test_what_train_ema_sets_of_an_optimizer_is_no_key_wherever_it_takes_it() -> None:
    words = (TRUST, "optimizer=slow", "optimizer._target_=my_models.by_name")
    config = configured(*words, "train.ema=0.9")
    assert build(config.optimizer, use_ema=True, ema_momentum=0.9) is True
    assert refusal(*words, "+optimizer.use_ema=true").startswith("optimizer.use_ema: no such")


def test_a_model_trained_by_an_optimizer_of_ones_own_is_saved_with_one_of_keras(
    tmp_path: Path,
) -> None:
    config = configured(TRUST, "optimizer=slow", "dataset=synthetic", "model=linear")
    model = api.build_model(config, api.load_data(config))
    assert type(model.optimizer).__name__ == "Slow"
    assert float(model.optimizer.learning_rate) == pytest.approx(0.005)
    model.save(tmp_path / "last.keras")
    completed = kept(load_saved(tmp_path / "last.keras", called="it", compile=True))
    assert type(completed.optimizer) is keras.optimizers.SGD  # as a sweep completes a job
    saved = kept(model)
    saved.save(tmp_path / "model.keras")
    assert type(saved.optimizer) is keras.optimizers.SGD
    load_saved(tmp_path / "model.keras", called="it")


def test_what_was_trusted_once_is_trusted_again_with_its_modules_and_nothing_else() -> None:
    configured("trusted_modules=[my_package]")
    configured(TRUST)
    assert trusted.trusted() == ["my_models"]
    trusted.trust_again(["my_package.inner", "broken"])
    assert trusted.trusted() == ["my_models", "my_package.inner"]


def test_what_the_environment_trusts_is_trusted_by_functions_that_are_given_no_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured(TRUST)
    monkeypatch.setenv(trusted.VARIABLE, "my_package")
    with inside(Path.cwd()), pytest.raises(RequestError, match="no such model"):
        api.load_champion("nothing")
    assert set(trusted.trusted()) == {"my_models", "my_package"}


def test_a_module_is_imported_no_earlier_than_the_one_that_a_model_names(tmp_path: Path) -> None:
    configured("trusted_modules=[broken,my_models]")
    trusted.import_trusted("my_models", until=lambda: "my_models" in sys.modules)
    assert (tmp_path / "imported").exists()
    trusted.import_trusted("elsewhere", until=lambda: False)  # what is broken may not be needed
    with pytest.raises(RequestError, match="broken cannot be imported"):
        trusted.import_trusted("broken", until=lambda: False)


@pytest.mark.parametrize("name", ["two", "wrong", "bare", "tiny", "nothing"])
def test_a_metric_that_does_not_look_like_ours_is_refused(name: str) -> None:
    said = refusal(TRUST, f"evaluate.metrics=[accuracy,my_models.{name}]")
    assert said.startswith("evaluate.metrics: ")
    assert "(x: Predictions) -> float or dict[str, float]" in said or "no function nothing" in said


def test_two_metrics_or_plots_of_one_name_are_refused() -> None:
    said = refusal(TRUST, "evaluate.metrics=[accuracy,my_models.accuracy]")
    assert said == "evaluate.metrics: two are named accuracy; leave one out, or rename yours"


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        (
            "my_modles",
            "no module my_modles in {here} or installed; modules here: broken, my_models",
        ),
        ("../evil", "'../evil' is not a valid module name"),
        ("my models", "a list is written [my,models]"),
        ("my_models.py", "cannot be imported"),
        ("broken", "broken cannot be imported: ZeroDivisionError: division by zero"),
        ("__main__", "trusted_modules: the source of a notebook or program cannot be recorded"),
    ],
)
def test_a_module_that_cannot_be_had_is_refused(tmp_path: Path, modules: str, reason: str) -> None:
    target = f"{modules}.tiny".replace("/", ".").replace(" ", "_")
    said = refusal(f"trusted_modules=['{modules}']", "model=linear", f"model._target_={target}")
    assert reason.format(here=tmp_path) in said


def test_a_package_is_trusted_with_what_is_inside_it() -> None:
    deep = ("model=linear", "model._target_=my_package.inner.deep")
    configured("trusted_modules=[my_package]", *deep)
    configured("trusted_modules=[my_package.inner]", *deep)
    assert "if you trust the module my_package.inner" in refusal(*deep)


def test_a_module_is_imported_with_the_settings_of_the_libraries_that_it_may_import(
    tmp_path: Path,
) -> None:
    names = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")
    (tmp_path / "my_models.py").write_text(
        "import os, pathlib\n"
        f"pathlib.Path('told').write_text(' '.join(map(os.environ.get, {names})))\n"
    )
    words = (TRUST, "dataset=synthetic", "model=linear", "model._target_=my_models.tiny")
    ended = fresh_pipeline(*words, cwd=tmp_path, **dict.fromkeys(names, ""))
    assert ended.returncode == 2
    assert (tmp_path / "told").read_text() == "tensorflow 3"


def test_the_sources_of_a_module_are_kept_with_their_checksum(tmp_path: Path) -> None:
    assert trusted.sources(["my_models", "my_package"]) == {
        "my_models.py": MODELS.encode(),
        "my_package/__init__.py": b"",
        "my_package/inner/__init__.py": b"def deep(images, classes): ...\n",
    }
    content = f"my_models.py\0{len(MODELS)}\0{MODELS}".encode()
    before = trusted.checksums(["my_models", "my_package"])
    assert before["my_models"] == hashlib.sha256(content).hexdigest()
    (tmp_path / "my_package/inner/__init__.py").write_text("def deep(images, classes): 1\n")
    after = trusted.checksums(["my_models", "my_package"])
    assert after["my_models"] == before["my_models"]
    assert after["my_package"] != before["my_package"]


def test_the_source_of_an_imported_module_is_what_was_imported_until_it_is_reloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(TRUST, *TINY)
    edited = MODELS + "MORE = 1\n"
    (tmp_path / "my_models.py").write_text(edited)
    assert trusted.sources(["my_models"]) == {"my_models.py": MODELS.encode()}
    monkeypatch.syspath_prepend(tmp_path)
    importlib.reload(sys.modules["my_models"])
    assert trusted.sources(["my_models"]) == {"my_models.py": edited.encode()}


@pytest.mark.parametrize("group", MODULES)
def test_what_a_builder_is_given_at_run_time_is_what_ours_take(group: str) -> None:
    for function in public_functions(MODULES[group]).values():
        parameters = inspect.signature(function).parameters.values()
        given = [one for one in parameters if one.name not in AVERAGING]
        positional = [one for one in given if one.kind is one.POSITIONAL_OR_KEYWORD]
        assert len(positional) == POSITIONAL[group]


def test_the_refusal_comes_before_tensorflow(tmp_path: Path) -> None:
    done = pipeline(*QUICK, "evaluate.metrics=[my_models.top2]", cwd=tmp_path)
    assert done.returncode == 2
    assert "add trusted_modules=[my_models]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "imported").exists()
