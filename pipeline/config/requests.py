"""What the verbs that act on recorded runs are asked for: a group of the configuration each.

On the command line of its own verb a key may stand without the group's name, and texts need no
quotes of Hydra's: `compare runs=a,b top=5` is `compare compare.runs=[a,b] compare.top=5`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from omegaconf import MISSING
from pydantic import Field

from pipeline.config.rules import Count, Positive, Share, ending_in, one_of

Reason = Annotated[str, Field(min_length=1, max_length=1000)]  # what fits a line of the ledger


@dataclass
class Compare:
    """Which runs to set side by side, and by what."""

    runs: list[str] = MISSING
    """Ids of the runs, or the first characters of each; none takes those of `sweep`, else `top`."""
    sweep: str | None = MISSING
    """Id of a sweep whose jobs to compare, or `latest`."""
    top: Count = MISSING
    """How many of the experiment's best finished runs, where neither runs nor a sweep is named."""
    metric: str = MISSING
    """Metric that ranks the runs."""
    direction: Annotated[str, one_of("maximize", "minimize")] | None = MISSING
    """Which values of the metric are better; null takes what the metric says of itself."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = MISSING
    """Coverage of the confidence intervals; 1 - confidence is the level of McNemar's test."""
    resamples: Annotated[int, Field(ge=100)] = MISSING
    """Bootstrap resamples."""
    format: Annotated[str, one_of("table", "json")] = MISSING
    """How to print: a table for people or JSON for scripts."""


@dataclass
class Promote:
    """What a run must reach to become the champion; null leaves a gate out."""

    max_prediction_gap: Share | None = MISSING
    """Largest difference between a probability that the run logged for a test image and the one
    that the saved model gives now."""
    min_test_accuracy: Share | None = MISSING
    """Least accuracy on the test split."""
    min_class_recall: Share | None = MISSING
    """Least recall of the worst class on the test split."""
    max_ece: Share | None = MISSING
    """Highest expected calibration error on the test split."""
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = MISSING
    """1 - alpha is the coverage of the paired interval of the difference in accuracy to a
    champion, on the same test images."""
    margin: Share = MISSING
    """Loss of accuracy that counts as none: the lower end of that interval must lie above -margin,
    for the present champion and for the best of its line."""
    max_model_mb: Positive | None = MISSING
    """Highest size of the saved model, MB (10⁶ bytes)."""
    max_latency_ms: Positive | None = MISSING
    """Highest median time to predict one image, ms."""
    challenger: bool = MISSING
    """Register a refused model and give it the alias `challenger`."""
    force: bool = MISSING
    """Promote whatever the gates say, if only the model loads; needs a reason."""
    reason: Reason | None = MISSING
    """Why, for the ledger."""


@dataclass
class Rollback:
    """Which version to go back to."""

    to: Count | None = MISSING
    """Version of the registered model; null takes the one with the alias `previous`."""
    reason: Reason | None = MISSING
    """Why, for the ledger."""


@dataclass
class History:
    """How to show the ledger."""

    format: Annotated[str, one_of("table", "json")] = MISSING
    """How to print: a table for people or JSON for scripts."""


@dataclass
class Predict:
    """Which images to classify by which model, and where the answers go."""

    model_uri: str | None = MISSING
    """As `models:/fashion_mnist@champion` or `models:/m-…`; null takes that of
    `run_id`, else the data set's champion."""
    images: str | None = MISSING
    """A file, a folder (searched through) or a pattern; `.npy` files hold arrays of images."""
    output: Annotated[str, ending_in(".csv", ".parquet", ".json", ".jsonl")] = MISSING
    """File for the answers, a row an image; `.json` and `.jsonl` are JSON lines."""
    invert: Annotated[str, one_of("auto", "yes", "no")] = MISSING
    """Whether to invert brightness: `auto` where an image's border is bright and the model's
    training images have a dark one."""
    batch_size: Count = MISSING
    """Images predicted at once."""
    contact_sheet: Annotated[str, ending_in(".png")] | None = MISSING
    """PNG file for a page of the first images with their classes."""


@dataclass
class Serve:
    """Which model to serve, where, and what a request may ask for."""

    model_uri: str | None = MISSING
    """As `models:/fashion_mnist@champion` or `models:/m-…`; null takes the data set's champion."""
    host: str = MISSING
    """Address to listen on; nobody is asked for a password, so one of this machine alone."""
    port: Annotated[int, Field(ge=0, lt=2**16)] = MISSING
    """Port to listen on; 0 takes a free one."""
    follow: bool = MISSING
    """Serve another version as soon as the alias in `model_uri` moves to it."""
    max_images: Count = MISSING
    """Images one request may hold."""
    max_body_mb: Positive = MISSING
    """Size of one request's body, MB (1,000,000 bytes)."""


@dataclass
class Doctor:
    """What to do about what is found."""

    fix: bool = MISSING
    """Mark runs whose process is gone as KILLED."""
    format: Annotated[str, one_of("table", "json")] = MISSING
    """How to print: a table for people or JSON for scripts."""


@dataclass
class Reproduce:
    """How alike the metrics of a rerun must be."""

    tolerance: Annotated[float, Field(ge=0)] = MISSING
    """Largest difference of a metric that still counts as reproduced."""


@dataclass
class Resume:
    """When to go on with a run."""

    force: bool = MISSING
    """Go on although code, libraries or data have changed; the run is told so."""


REQUESTS: dict[str, type] = {
    "compare": Compare,
    "promote": Promote,
    "rollback": Rollback,
    "history": History,
    "predict": Predict,
    "serve": Serve,
    "doctor": Doctor,
    "reproduce": Reproduce,
    "resume": Resume,
}
"""By verb, which is also the name of its group."""
