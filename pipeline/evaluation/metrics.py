"""Metrics of predictions: `Predictions → float`, or several values by name, such as one per class.

To add a metric, add a function here and its name to `evaluate.metrics`. `@metric(...)` declares the
better direction, the range and the unit; code that ranks, draws or judges metrics calls `scale_of`.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import lazy_loader
import numpy as np

from pipeline.data.values import KEPT, Array, Predictions
from pipeline.evaluation.intervals import Estimate
from pipeline.system.tables import csv_text

# Names in a configuration are checked against this file without importing scikit-learn.
sklearn = lazy_loader.load("sklearn")

ECE_BINS = 15  # as in Guo et al. 2017
MOST_CLASSES = 50  # in a picture or table that would have a row for each
_LONGEST = 200  # characters of a class name in a metric's name
_ACCEPTED = re.compile(r"[/\w.\- :]{1,200}")  # names of metrics, by MLflow

Better = Literal["higher", "lower"]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Which values of a metric are better (None if unknown), their range and unit."""

    better: Better | None = None
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""

    def within(self, estimate: Estimate) -> Estimate:
        """Clips the interval of an estimate to the range, since few seeds make it wide.

        An estimate outside the range has another scale (a percentage, say) and is not changed.
        """
        if not self.low <= estimate.value <= self.high:
            return estimate
        low, high = max(estimate.low, self.low), min(estimate.high, self.high)
        return replace(estimate, low=low, high=high)


_DECLARED: dict[str, tuple[str, Scale]] = {}  # by plain name: who declared it, and its scale
_DECLARED_PER_CLASS: dict[str, tuple[str, Scale]] = {}  # by prefix of the name


def metric(
    *,
    better: Better,
    low: float = -math.inf,
    high: float = math.inf,
    unit: str = "",
    prefixes: Sequence[str] = (),
) -> Callable[[Function], Function]:
    """Declares the better direction, the range and the unit of a metric.

    A metric with several values names each `<prefix>_<rest>`; the default prefix is the name of the
    function.

    Raises:
        ValueError: another function of that name declares a different scale.
    """
    scale = Scale(better=better, low=low, high=high, unit=unit)

    def declare(function: Function) -> Function:
        name, source = function.__name__, f"{function.__module__}.{function.__qualname__}"
        several = str(function.__annotations__.get("return", "")).startswith("dict")
        names = [f"{prefix}_" for prefix in prefixes or (name,)] if several else [name]
        known = _DECLARED_PER_CLASS if several else _DECLARED
        for key in names:
            before = known.setdefault(key, (source, scale))
            if before[0] != source and before[1] != scale:
                raise ValueError(f"metric {key}: {before[0]} and {source} declare different scales")
            known[key] = (source, scale)
        return function

    return declare


def scale_of(name: str) -> Scale:
    """The scale of a metric by its MLflow name: `val/loss`, `test/f1_Bag`, `mae`.

    Declared metrics take precedence, then those that every run records, then names known from other
    tools. For any other name `better` is None.
    """
    full = name.removeprefix(KEPT)
    group, _, plain = full.rpartition("/")
    if full in RUN_SCALES:
        return RUN_SCALES[full]
    if plain in _DECLARED:
        return _DECLARED[plain][1]
    if group == "time" and plain.endswith("_s"):
        return _PER_SECOND if plain.endswith("_per_s") else _SECONDS
    if group == "test":  # only this group has scores of single classes
        for prefix, (_, scale) in _DECLARED_PER_CLASS.items():
            if plain.startswith(prefix):
                return scale
    return _well_known(plain)


_SECONDS = Scale(better="lower", low=0, unit="s")
_PER_SECOND = Scale(better="higher", low=0, unit="1/s")
_COUNT = Scale(better="lower", low=0)
RUN_SCALES = {
    "model/parameters": _COUNT,
    "model/activations": _COUNT,
    "model/training_memory_mb": Scale(better="lower", low=0, unit="MB"),
    "time/images_per_s": Scale(better="higher", low=0, unit="images/s"),
    "time/train_s": _SECONDS,
}
"""Metrics about model and training that every run records, by their MLflow names."""
MONITORS = ("val/loss", "val/accuracy")
"""Metrics that training can monitor per epoch."""
OBJECTIVES = ("val/accuracy", "val/loss", *RUN_SCALES)
"""Metrics that a sweep can optimize: those of a run that does not use the test split."""


@metric(better="lower", low=0, unit="nats")
def loss(predictions: Predictions) -> float:
    """Mean categorical cross-entropy in nats, probabilities clipped at 1e-7 as Keras does."""
    return float(cross_entropies(predictions.probabilities, predictions.labels).mean())


def cross_entropies(probabilities: Array, labels: Array) -> Array:
    """The cross-entropy f64[N] in nats of each row of f32[N,K], clipped like `loss`."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    clipped: Array = np.clip(chosen, 1e-7, 1 - 1e-7)
    return -np.log(clipped)


@metric(better="higher", low=0, high=1)
def accuracy(predictions: Predictions) -> float:
    """Share of images whose most probable class is correct."""
    return float(sklearn.metrics.accuracy_score(predictions.labels, predictions.predicted))


@metric(better="lower", low=0, high=1)
def error_rate(predictions: Predictions) -> float:
    """Share of images whose most probable class is wrong."""
    return 1 - accuracy(predictions)


@metric(better="higher", low=0, high=1)
def balanced_accuracy(predictions: Predictions) -> float:
    """Mean recall of the classes that have images."""
    _, recall, _, images = class_scores(predictions)
    return float(recall[images > 0].mean())


@metric(better="higher", low=0, high=1)
def macro_f1(predictions: Predictions) -> float:
    """Mean over all classes of the harmonic mean of precision and recall.

    It is 0 for a class without images.
    """
    return float(class_scores(predictions)[2].mean())


@metric(better="lower", low=0, high=2)
def brier(predictions: Predictions) -> float:
    """Mean squared distance between probabilities and one-hot labels, summed over classes.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    truth = np.eye(len(predictions.class_names))[predictions.labels]
    return float(((predictions.probabilities - truth) ** 2).sum(axis=1).mean())


@metric(better="lower", low=0, high=1)
def ece(predictions: Predictions) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over 15 equal bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
    """
    confidence, share_right, count = calibration(predictions)
    return float(np.sum(count * np.abs(share_right - confidence)) / count.sum())


@metric(better="higher", low=0, high=1, prefixes=("accuracy", "precision", "f1"))
def per_class(predictions: Predictions) -> dict[str, float]:
    """`accuracy_<class>`, `precision_<class>`, `f1_<class>`; a class' accuracy is its recall."""
    precision, recall, f1, _ = class_scores(predictions)
    keys = class_keys(predictions.class_names)
    columns = {"accuracy": recall, "precision": precision, "f1": f1}
    return {
        f"{column}_{key}": float(value)
        for column, values in columns.items()
        for key, value in zip(keys, values, strict=True)
    }


def class_keys(class_names: Sequence[str]) -> list[str]:
    """Turns class names into parts of metric names that are unique in any store.

    Each is `as_metric_name` of the class. Part of the name's SHA-256 is appended for classes that
    would share one ("C++", "C##"; "hot dog", "hot_dog"), that differ only in case or Unicode form,
    or whose name is empty or too long. It does not depend on the other classes.
    """
    slugs = [as_metric_name(name) for name in class_names]
    digests = [
        hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest() for name in class_names
    ]
    keys = [slug if 0 < len(slug) <= _LONGEST else "" for slug in slugs]
    for digits in (6, 16, 64):
        seen = Counter(map(_folded, keys))
        keys = [
            f"{slug[: _LONGEST - 65]}-{digest[:digits]}"
            if not key or seen[_folded(key)] > 1
            else key
            for key, slug, digest in zip(keys, slugs, digests, strict=True)
        ]
    return keys


def metric_keys(names: Sequence[str]) -> list[str]:
    """Names of metrics in one evaluation as MLflow takes them.

    Those that it would refuse, such as "recall_C++", are changed as `class_keys` does.
    """
    keys = class_keys(names)
    return [
        name if _ACCEPTED.fullmatch(name) else key for name, key in zip(names, keys, strict=True)
    ]


def as_metric_name(class_name: str) -> str:
    """A class name as part of a metric's name, without slashes, which MLflow's UI makes folders."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in class_name)


def _folded(key: str) -> str:
    """Maps names to the same text if a file system may confuse them (case or Unicode form)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", key).casefold())


def calibration(predictions: Predictions) -> tuple[Array, Array, Array]:
    """Mean confidence f64[B], accuracy f64[B] and count i64[B] of the non-empty ECE bins."""
    confidence = predictions.confidence.astype(np.float64)
    right = predictions.correct
    # Bins are (a, b], so that a confidence of exactly 1 falls into the last.
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    count = np.bincount(bins, minlength=ECE_BINS)
    used = count > 0
    mean = np.bincount(bins, weights=confidence, minlength=ECE_BINS)[used] / count[used]
    share = np.bincount(bins, weights=right, minlength=ECE_BINS)[used] / count[used]
    return mean, share, count[used]


def class_report(predictions: Predictions) -> str:
    """Precision, recall, F1 and number of images per class, as scikit-learn's text table."""
    return str(
        sklearn.metrics.classification_report(
            predictions.labels,
            predictions.predicted,
            labels=np.arange(len(predictions.class_names)),
            target_names=predictions.class_names,
            digits=4,
            zero_division=0.0,
        )
    )


def class_table(predictions: Predictions) -> str:
    """Number of images, accuracy (recall), precision and F1 of each class, as a CSV table."""
    precision, recall, f1, images = class_scores(predictions)
    columns = (predictions.class_names, images, recall, precision, f1)
    rows = [
        (name, count, *(f"{score:.6g}" for score in scores))
        for name, count, *scores in zip(*columns, strict=True)
    ]
    return csv_text([("class", "images", "accuracy", "precision", "f1"), *rows])


def class_scores(predictions: Predictions) -> tuple[Array, Array, Array, Array]:
    """Precision, recall and F1 f64[K], and number of images i64[K], of each class."""
    scores: tuple[Array, Array, Array, Array] = sklearn.metrics.precision_recall_fscore_support(
        predictions.labels,
        predictions.predicted,
        labels=np.arange(len(predictions.class_names)),
        zero_division=0.0,
    )
    return scores


def surest_mistakes(predictions: Predictions, most: int) -> Array:
    """The wrong predictions of the highest confidence, at most so many: indices i64[m]."""
    wrong = np.flatnonzero(~predictions.correct)
    return wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:most]


def most_confused(predictions: Predictions, most: int) -> Array:
    """The classes with the most mistakes, as true or predicted class: at most so many, i64[m].

    They keep their order; among classes with as many mistakes, those with more images count.
    """
    classes, wrong = len(predictions.class_names), ~predictions.correct
    pairs = np.concatenate([predictions.labels[wrong], predictions.predicted[wrong]])
    mistakes = np.bincount(pairs, minlength=classes)
    images = np.bincount(predictions.labels, minlength=classes)
    return np.sort(np.lexsort((-images, -mistakes))[:most])


def confusion_counts(predictions: Predictions, shown: Array) -> Array:
    """The number of images by true and predicted class, i64[m,m], among the classes `shown` i64[m].

    Those of all classes would take gigabytes if there are ten thousand.
    """
    place = np.full(len(predictions.class_names), -1, np.int64)
    place[shown] = np.arange(len(shown))
    true, guess = place[predictions.labels], place[predictions.predicted]
    inside = (true >= 0) & (guess >= 0)
    cells = true[inside] * len(shown) + guess[inside]
    return np.bincount(cells, minlength=len(shown) ** 2).reshape(len(shown), len(shown))


# Names that other tools give their metrics.
_SHARES = """
acc auc auroc roc_auc pr_auc auprc average_precision f1 f1_score micro_f1 weighted_f1 precision
recall sensitivity specificity macro_precision macro_recall iou miou dice jaccard
categorical_accuracy sparse_categorical_accuracy binary_accuracy top_k_accuracy
"""
_SCORES = "kappa cohen_kappa mcc matthews_corrcoef r2 r2_score"
_ERRORS = """
error err brier_score nll log_loss logloss cross_entropy crossentropy xent mae mse rmse mape
negative_log_likelihood mean_absolute_error mean_squared_error root_mean_squared_error hinge_loss
hamming_loss zero_one_loss kl_divergence perplexity mce ace calibration_error top_k_error
expected_calibration_error max_calibration_error
"""
_WELL_KNOWN = {
    **dict.fromkeys(_SHARES.split(), Scale(better="higher", low=0, high=1)),
    **dict.fromkeys(_SCORES.split(), Scale(better="higher", high=1)),
    **dict.fromkeys(_ERRORS.split(), Scale(better="lower", low=0)),
}
_SPLITS = "train|training|val|valid|validation|test|testing|eval|dev"


def _well_known(plain: str) -> Scale:
    """The scale of a name known from other tools: `val_acc`, `top-5-error`."""
    name = re.sub(r"[\s-]+", "_", plain.strip().lower())
    name = re.sub(rf"^(?:{_SPLITS})_|_(?:{_SPLITS})$", "", name)
    name = re.sub(r"^top_?\d+(?:_?acc|_?accuracy)?$", "top_k_accuracy", name)
    name = re.sub(r"^top_?\d+_?(?:err|error)$", "top_k_error", name)
    if name in _DECLARED:
        return _DECLARED[name][1]
    return _WELL_KNOWN.get(name, Scale())
