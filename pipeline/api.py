"""The pipeline from Python: the same steps and verbs as on the command line, as functions.

Functions take and return values; only the progress of a training is printed. A wrong request raises
`RequestError` and failed work raises `PipelineError`, with the message of the command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.config.allowed import check_words
from pipeline.config.compose import apart, known_to_hydra, one_at_a_time
from pipeline.config.compose import compose as compose_words
from pipeline.config.effects import refuse_without_effect
from pipeline.config.messages import error_line
from pipeline.config.mistakes import Command, refuse_mistakes
from pipeline.config.named_runs import teacher_runs, weights_run
from pipeline.config.schema import Config, register, validate, validate_request
from pipeline.config.search_path import files_of
from pipeline.config.trusted import trust_again, trusted
from pipeline.config.words import addressed
from pipeline.libraries import import_slow
from pipeline.system.errors import RequestError
from pipeline.system.folders import folder_of_work
from pipeline.system.terminal import native_messages_to
from pipeline.verbs import requests, verbs

if TYPE_CHECKING:
    import keras

    from pipeline.data.values import Array, Evaluation, Fitted, Prepared
    from pipeline.tracking.models import LoadedModel
    from pipeline.tracking.values import RecordedRun
    from pipeline.training.callbacks import EpochListener
    from pipeline.verbs.audit.command import Audited
    from pipeline.verbs.compare.comparison import Comparison
    from pipeline.verbs.promote.promote import Decision

WITH_KEYS = ("audit", "compare", "promote")  # verbs whose keys the function takes


def compose(*overrides: str) -> Config:
    """The checked configuration for words such as `model=cnn` and `train.epochs=5`.

    Raises:
        RequestError: a value is refused; the message names its key and the rule.
    """
    with one_at_a_time:
        composed = _composed(overrides)
        with known_to_hydra(composed), _in_our_words():
            config = validate(composed)
            refuse_without_effect(composed.hydra.overrides.task, [config], python=True)
            return config


def load_data(config: Config) -> Prepared:
    """Loads the data set, verified and cached, as splits: images u8[N,H,W,C], labels i32[N]."""
    trust_again(config.trusted_modules)
    prepared: Prepared = _imported("pipeline.data.load").load_data(config)
    return prepared


def build_model(config: Config, prepared: Prepared) -> keras.Model:
    """Builds a compiled Keras model: images u8[N,H,W,C] → probabilities f32[N,K].

    Raises:
        RequestError: the network does not fit the images, or `model.weights` cannot be used.
    """
    trust_again(config.trusted_modules)
    built = _imported("pipeline.training.build")
    built.prepare_keras(config)
    return built.build_model(_with_weights(config), prepared)


def train(
    config: Config,
    prepared: Prepared,
    *,
    model: keras.Model | None = None,
    folder: Path | str | None = None,
    listeners: Sequence[EpochListener] = (),
) -> Fitted:
    """Fits a model, by default a new one, and returns it in the result; records nothing.

    A given `model` is compiled anew, with the optimizer and schedule of the configuration and the
    loss of a run, and goes on from the weights that it has; `train.scaling`, `train.precision` and
    layers of an augmentation are what it was built with. `folder` receives checkpoints and the
    TensorBoard log (default: a new one under `outputs/`). After each epoch `listeners` are called
    with its number (from 1) and its metrics.

    Raises:
        RequestError: the given model does not take the images or does not give probabilities.
        PipelineError: the loss became NaN or infinite.
    """
    trust_again(config.trusted_modules)
    training, config = _imported("pipeline.training.train"), _with_weights(config)
    teachers = []
    if teacher_runs(config):
        teachers = _imported("pipeline.tracking.runs").load_teachers(config, prepared)
    if model is None:
        model = build_model(config, prepared)
    else:
        built = _imported("pipeline.training.build")
        built.prepare_keras(config)
        _imported("pipeline.training.check").check_given(
            model, prepared.image_shape, len(prepared.class_names)
        )
        built.compile_model(model, config, images=len(prepared.train))
    fitted: Fitted = training.train(
        model,
        prepared,
        config,
        folder_of_work(folder),
        listeners,
        teachers=teachers,
    )
    return fitted


def _with_weights(config: Config) -> Config:
    """The configuration with a run in `model.weights` replaced by the file of its saved model."""
    if weights_run(config) is None:
        return config
    named: Config = _imported("pipeline.tracking.runs").with_weights(config)
    return named


def predict(
    model: keras.Model | LoadedModel | str, images: Array, *, batch_size: int = 1024
) -> Array:
    """Predicts probabilities f32[N,K] for images u8[N,H,W,C].

    `model` may be the address of a saved one, such as `models:/digits@champion`.

    Raises:
        RequestError: there is no such model, or the images have the wrong shape or dtype.
    """
    import numpy as np

    if isinstance(model, str):
        model = _imported("pipeline.tracking.models").load_model(
            model, _with_its_modules(None).tracking
        )
    # A class of the caller's own may have an attribute `model`, too.
    loaded = hasattr(model, "class_names")
    keras_model: Any = getattr(model, "model", model) if loaded else model
    graph = _imported("pipeline.training.graph")
    graph.require_one_input(keras_model)
    wanted, given = tuple(keras_model.inputs[0].shape[1:]), np.asarray(images)
    if given.dtype != np.uint8 or not graph.takes(keras_model, given.shape[1:]):
        raise RequestError(
            f"images: the model takes u8[{','.join(map(str, ('N', *wanted)))}], not "
            f"{given.dtype}[{','.join(map(str, given.shape))}]"
        )
    forward = _imported("pipeline.training.predictor").predictor(keras_model)
    size = _imported("pipeline.data.values").images_at_once(given.shape[1:], batch_size)
    parts = [forward(given[start : start + size]) for start in range(0, len(given), size)]
    return (
        np.concatenate(parts) if parts else np.empty((0, keras_model.output_shape[1]), np.float32)
    )


def evaluate(
    model: keras.Model, config: Config, prepared: Prepared, *, split: str = "test"
) -> Evaluation:
    """Returns metrics and figures of a model's predictions on a split: `train`, `val` or `test`.

    Metrics are named after the split, as in `val/accuracy`.

    Raises:
        RequestError: there is no such split, or it has no images.
    """
    if split not in prepared.splits:
        raise RequestError(f"split={split}: choose one of {', '.join(prepared.splits)}")
    trust_again(config.trusted_modules)
    evaluating = _imported("pipeline.evaluation.evaluate")
    images = prepared.splits[split]
    if not len(images):
        raise RequestError(f"split={split}: it has no images")
    _imported("pipeline.training.graph").require_one_input(model)
    settings = config.evaluate
    predictor = _imported("pipeline.training.predictor")
    probabilities = predictor.predict(model, images, batch_size=settings.batch_size)
    predictions = prepared.predictions(images, probabilities)
    found: Evaluation = evaluating.evaluate(
        predictions, settings.metrics, settings.plots, split=split
    )
    return found


def run(config: Config, *, folder: Path | str | None = None) -> RecordedRun:
    """Trains, evaluates and records one model, as the verb `run` does.

    `folder` receives checkpoints and artefacts (default: a new one under `outputs/`). Without a
    store (`tracking.offline=true`, or one that is away) the run is read from that folder.

    Raises:
        RequestError: the run cannot work: its data, or a run that it names, is not there.
        PipelineError: training failed; the run is recorded as FAILED.
    """
    trust_again(config.trusted_modules)
    pictures = verbs()["run"].require_possible(config)
    place = folder_of_work(folder)
    result = _imported("pipeline.run").run(config, place, pictures=pictures)
    # There is a journal if the store does not have all of the run.
    here: RecordedRun | None = _imported("pipeline.tracking.journal").run_in_journal(place)
    return here or _find(result.run_id, config)


def find_run(run_id: str = "latest", *, config: Config | None = None) -> RecordedRun:
    """Finds a recorded run by its id, the beginning of its id, or `latest`.

    `config` names the store and experiment, as in `compose("dataset=digits")`; the default is
    `compose()`.

    Raises:
        RequestError: there is no such run.
    """
    return _find(run_id, _with_its_modules(config))


def find_runs(
    *, sweep: str | None = None, finished: bool = False, config: Config | None = None
) -> list[RecordedRun]:
    """Lists the runs of an experiment, or the jobs of a sweep (its id, or `latest`), oldest first.

    `finished` leaves out runs that failed, were stopped or are still running; `config` names the
    store and experiment.

    Raises:
        RequestError: there is no such sweep.
    """
    config = _with_its_modules(config)
    finding, values = _imported("pipeline.tracking.runs"), _imported("pipeline.tracking.values")
    query = values.Query(
        experiment=_imported("pipeline.tracking.client").experiment_name(config),
        is_sweep=False,
        status=(values.Status.FINISHED,) if finished else None,
        order=("started",),
    )
    if sweep is not None:
        parent = finding.find_sweep(sweep, config, key="sweep")
        query = replace(query, experiment=parent.experiment, parent=parent.id)
    found: list[RecordedRun] = finding.find_runs(query, config.tracking)
    return found


def compare(
    runs: Sequence[RecordedRun | str] | None = None,
    *,
    config: Config | None = None,
    folder: Path | str | None = None,
    **settings: Any,
) -> Comparison:
    """Compares runs and tests whether their differences are significant.

    `runs` are values or ids; without them, `sweep=…` or `top=…` selects some. `settings` are the
    keys of the verb: `compare(runs, metric="test/accuracy")`. Page and plots go to `folder`.

    Raises:
        RequestError: `runs` is empty, the runs cannot be found, or none of them has the metric.
    """
    if runs is not None:
        ids = _ids(runs)
        if not ids:  # as a search may return; others are not what was asked for
            raise RequestError("runs: there are none; name two runs or more, or leave runs out")
        settings = {"runs": ids, **settings}
    return _carried_out("compare", config, folder, settings)


def _ids(runs: Any) -> list[str]:
    """The ids of runs that are values or ids.

    Raises:
        RequestError: it is no list of runs.
    """
    listed = None if isinstance(runs, str) or not isinstance(runs, Iterable) else list(runs)
    if listed is None or not all(isinstance(run, str) or hasattr(run, "id") for run in listed):
        raise RequestError("runs: give a list of runs or of their ids, compare([first, second])")
    return [run if isinstance(run, str) else run.id for run in listed]


def audit(config: Config, *, folder: Path | str | None = None, **settings: Any) -> Audited:
    """Finds labels that are likely wrong, by models trained without their images.

    `settings` are the keys of the verb: `audit(config, folds=10)`. Page and lists go to the current
    folder, or where `page`, `output` and `exclude` say; `folder` receives working files.

    Raises:
        RequestError: the data set cannot be divided into so many folds.
    """
    return _carried_out("audit", config, folder, settings)


def promote(
    run: RecordedRun | str,
    *,
    config: Config | None = None,
    folder: Path | str | None = None,
    **settings: Any,
) -> Decision:
    """Makes a run's model the champion of its data set if it passes the gates.

    `run` is a value, an id, or `best`; `settings` are the keys of the verb, as in
    `promote(run, min_test_accuracy=0.9)`. The decision holds the verdict of each gate.

    Raises:
        RequestError: there is no such run, or it has no model.
        PipelineError: another promotion happened in the meantime.
    """
    run_id = run if isinstance(run, str) else run.id
    return _carried_out(
        "promote", replace(_with_its_modules(config), run_id=run_id), folder, settings
    )


def load_champion(dataset: str, *, config: Config | None = None) -> LoadedModel:
    """Loads the champion of a data set, with its class names and the shape of its images.

    Raises:
        RequestError: the data set has no champion.
    """
    from pipeline.tracking.values import champion_uri

    config = _with_its_modules(config)
    models = _imported("pipeline.tracking.models")
    champion: LoadedModel = models.load_model(champion_uri(dataset), config.tracking)
    return champion


def _with_its_modules(config: Config | None) -> Config:
    """The configuration, by default `compose()`, whose modules are trusted beside the others."""
    with one_at_a_time:
        before = trusted()
        try:
            config = config or compose()
        finally:
            trust_again(before)
        trust_again(config.trusted_modules)
        return config


def _composed(overrides: Sequence[str], verb: str = "run") -> DictConfig:
    """Checks Hydra's part of the configuration, then composes the whole.

    Of the verbs' groups, only that of `verb` has its defaults.
    """
    for word in overrides:
        if not isinstance(word, str) or word.startswith("-"):
            raise RequestError(f"{word}: settings are written key=value, as in train.epochs=5")
    register(requests(), of={verb})
    asked = Command(verb="run", requests=requests(), files=files_of, python=WITH_KEYS)
    refuse_mistakes(overrides, asked)
    words = addressed(overrides, "run", None)
    with apart(), _in_our_words(ValueError):  # as Hydra calls a header that it cannot read
        check_words(words, multirun=False)
        return compose_words(words)


@contextmanager
def _in_our_words(*others: type[Exception]) -> Iterator[None]:
    """Turns errors of Hydra and OmegaConf, and `others`, into a RequestError in our words."""
    theirs: tuple[type[Exception], ...] = (HydraException, OmegaConfBaseException, *others)
    try:
        yield
    except theirs as error:
        raise RequestError(error_line(error)) from error


def _carried_out(
    name: str, config: Config | None, folder: Path | str | None, settings: dict[str, Any]
) -> Any:
    """Runs a verb that has keys of its own and returns its result."""
    config = _with_its_modules(config)
    settings = {key: _without_numpy(value) for key, value in settings.items()}
    verb = verbs()[name]
    assert verb.request is not None
    with one_at_a_time, _in_our_words():
        composed = _composed((), name)
        for key, value in settings.items():
            OmegaConf.update(composed, f"{name}.{key}", value, merge=False)
        request = validate_request(composed, name, verb.request)
    given = [f"{name}.{key}={value}" for key, value in settings.items()]
    verb.require_effects(given, config, request)
    pictures = verb.require_possible(config)
    _imported(verb.entry.partition(":")[0])
    return verb.carry_out(config, request, folder_of_work(folder), pictures)


def _without_numpy(value: Any) -> Any:
    """Numbers and arrays of NumPy as numbers and lists of Python, which OmegaConf takes."""
    if isinstance(value, list | tuple):
        return [_without_numpy(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _imported(module: str) -> Any:
    """Imports a module of the pipeline; keeps TensorFlow's native messages off the terminal."""
    with nullcontext() if module in sys.modules else native_messages_to(Path(os.devnull)):
        return import_slow(module)


def _find(run_id: str, config: Config) -> RecordedRun:
    found: RecordedRun = _imported("pipeline.tracking.runs").find_run(run_id, config)
    return found
