"""Numbers that tell how good predictions are: `Predictions → float`, or one a class by name.

A new metric is a function here and a name in `evaluate.metrics`.
"""

from __future__ import annotations

import lazy_loader
import numpy as np

from pipeline.data.values import Array, Predictions

# Names in a configuration are checked against this file without importing scikit-learn.
sklearn = lazy_loader.load("sklearn")

ECE_BINS = 15  # as in Guo et al. 2017


def loss(predictions: Predictions) -> float:
    """Mean categorical cross-entropy in nats, probabilities clipped at 1e-7 as Keras does."""
    chosen = predictions.probs[np.arange(len(predictions.labels)), predictions.labels]
    return float(-np.log(np.clip(chosen.astype(np.float64), 1e-7, 1 - 1e-7)).mean())


def accuracy(predictions: Predictions) -> float:
    """Share of images whose most probable class is the right one."""
    return float(sklearn.metrics.accuracy_score(predictions.labels, predictions.predicted))


def macro_f1(predictions: Predictions) -> float:
    """Mean over classes of the harmonic mean of precision and recall."""
    return float(class_scores(predictions)[2].mean())


def ece(predictions: Predictions) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over 15 equal bins.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
    """
    confidence, share_right, count = calibration(predictions)
    return float(np.sum(count * np.abs(share_right - confidence)) / count.sum())


def per_class(predictions: Predictions) -> dict[str, float]:
    """`accuracy_<class>`, `precision_<class>`, `f1_<class>`; a class' accuracy is its recall."""
    precision, recall, f1, _ = class_scores(predictions)
    names = [metric_name(name) for name in predictions.class_names]
    columns = {"accuracy": recall, "precision": precision, "f1": f1}
    return {
        f"{column}_{name}": float(value)
        for column, values in columns.items()
        for name, value in zip(names, values, strict=True)
    }


def metric_name(class_name: str) -> str:
    """A class name as part of a metric's name: a slash would open a folder in the MLflow UI."""
    return "".join(c if c.isalnum() or c in "-." else "_" for c in class_name)


def calibration(predictions: Predictions) -> tuple[Array, Array, Array]:
    """Mean confidence f64[B], share right f64[B] and count i64[B] of the non-empty ECE bins."""
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
    """Precision, recall, F1 and number of images a class, as scikit-learn's text table."""
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


def class_scores(predictions: Predictions) -> tuple[Array, Array, Array, Array]:
    """Precision, recall and F1 f64[K], and number of images i64[K], of each class."""
    scores: tuple[Array, Array, Array, Array] = sklearn.metrics.precision_recall_fscore_support(
        predictions.labels,
        predictions.predicted,
        labels=np.arange(len(predictions.class_names)),
        zero_division=0.0,
    )
    return scores
