"""Gathers the evidence for the gates: loads the saved model, runs and times it on the real data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from pipeline.config.schema import Config
from pipeline.data.load import ingest
from pipeline.data.values import Array, Predictions, RawData, Split, most_probable
from pipeline.system.errors import PipelineError, RequestError, one_line, some_of
from pipeline.tracking.client import StoreAway
from pipeline.tracking.models import load_model
from pipeline.tracking.runs import MOST_NAMES, find_run
from pipeline.tracking.values import RecordedRun, StoredPredictions, Version
from pipeline.training.predictor import predict, single_image_ms
from pipeline.verbs.promote.gates import Champion, Evidence


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """A saved model on the test images: its `probabilities` f32[N,K], or None and the reason."""

    probabilities: Array | None
    error: str = ""
    megabytes: float = float("nan")
    milliseconds: float = float("nan")


def gather(
    candidate: RecordedRun, config: Config, champion: Version | None, former: Sequence[Version] = ()
) -> Evidence:
    """Gathers the evidence on a candidate, including the current champion if there is one.

    `former` are the earlier champions of its line, or all of the last line if there is no champion
    now. `config` is the current configuration, which names the data cache and the tracking store.

    Raises:
        RequestError: the data set of the run is unavailable.
    """
    then = replace(candidate.config, data_dir=config.data_dir)
    raw = ingest(then, identity=candidate.identity)
    logged = _logged(candidate, raw)
    tried = _tried(str(candidate.model_uri), config, raw)
    present = _champion(champion, logged, config, raw) if champion and logged else None
    return Evidence(
        status=candidate.status,
        fingerprint=candidate.fingerprint or "",
        fingerprint_now=raw.fingerprint,
        logged=logged,
        reproduced=tried.probabilities,
        load_error=tried.error,
        model_mb=tried.megabytes,
        latency_ms=tried.milliseconds,
        champion=present,
        best=_best(former, present, logged, config) if logged else None,
    )


def _logged(candidate: RecordedRun, raw: RawData) -> Predictions | None:
    stored = _test_predictions(candidate)
    if stored is None:
        return None
    # The gates use no image, and the data here may differ from the run's.
    rows = np.resize(raw.test.rows, len(stored.labels))
    split = Split(images=raw.test.images, rows=rows, labels=stored.labels)
    # If the data have got other classes since, a gate says that they are not the same.
    is_alike = len(stored.class_names) == len(raw.class_names)
    names = raw.class_names if is_alike else stored.class_names
    return Predictions(split=split, probabilities=stored.probabilities, class_names=names)


def _test_predictions(run: RecordedRun) -> StoredPredictions | None:
    """What a run logged for the test split, or None."""
    try:
        return run.predictions().get("test")
    except RequestError:
        return None


def _tried(uri: str, config: Config, raw: RawData) -> _Tried:
    """Loads a saved model and predicts the test images of `raw` with it."""
    test = raw.test
    try:
        loaded = load_model(uri, config.tracking)
        if loaded.image_shape != test.image_shape:
            raise ValueError(
                f"it takes images of shape {loaded.image_shape}, not {test.image_shape}"
            )
        if set(loaded.class_names) != set(raw.class_names):
            raise ValueError(f"its classes are {some_of(loaded.class_names, MOST_NAMES)}")
        probabilities = predict(loaded.model, test, batch_size=config.evaluate.batch_size)
        return _Tried(
            probabilities=probabilities[:, [*map(loaded.class_names.index, raw.class_names)]],
            megabytes=loaded.megabytes,
            milliseconds=single_image_ms(loaded.model, test),
        )
    except StoreAway:  # says nothing of the model
        raise
    except (PipelineError, OSError, ValueError, TypeError, tf.errors.OpError) as error:
        told = str(error) if isinstance(error, PipelineError) else one_line(error)
        return _Tried(probabilities=None, error=told)


def _champion(version: Version, logged: Predictions, config: Config, raw: RawData) -> Champion:
    """The champion's predictions on these test images: as logged, or made again."""
    same = version.fingerprint == raw.fingerprint
    stored = _stored(version, config) if same else None
    if stored and np.array_equal(stored.labels, logged.labels):
        return Champion(version=version.number, predicted=stored.predicted)
    if not np.array_equal(raw.test.labels, logged.labels):
        problem = "the candidate's test images are no longer there"
        return Champion(version=version.number, predicted=None, problem=problem)
    tried = _tried(version.uri, config, raw)
    predicted = None if tried.probabilities is None else most_probable(tried.probabilities)
    return Champion(version=version.number, predicted=predicted, problem=tried.error)


def _best(
    former: Sequence[Version], present: Champion | None, logged: Predictions, config: Config
) -> Champion | None:
    """The former champion that was right on more of these test images than the current one.

    If there is no current one, it is the best of them. Champions without logged predictions on
    exactly these images are ignored.
    """
    best, most = None, -1
    if present and present.predicted is not None:
        most = int(np.sum(present.predicted == logged.labels))
    for version in former:
        stored = _stored(version, config)
        if stored is None or not np.array_equal(stored.labels, logged.labels):
            continue
        if (right := int(np.sum(stored.predicted == logged.labels))) > most:
            best = Champion(version=version.number, predicted=stored.predicted, is_former=True)
            most = right
    return best


def _stored(version: Version, config: Config) -> StoredPredictions | None:
    """The test predictions of the version's run; None if they or the run are missing."""
    with suppress(RequestError):
        return _test_predictions(find_run(version.run_id, config))
    return None
