"""The verb `drift`, from new pictures to a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from pipeline.config.schema import Config
from pipeline.data.archives import located
from pipeline.data.load import cached
from pipeline.data.measures import (
    QUANTITIES,
    SUMMARY_FILE,
    DataSummary,
    parsed,
    quantities_of,
    rounded,
    sizes,
)
from pipeline.data.packing import Packed, Packing, Selection, pack
from pipeline.data.pictures import MODES, PAD
from pipeline.data.polarity import to_invert, with_inverted
from pipeline.data.values import Array, images_at_once, images_per_block, most_probable
from pipeline.evaluation.drift import (
    FEWEST,
    Directions,
    Shift,
    directions_of,
    judged,
    of_classes,
    of_features,
    of_values,
    smallest_seen,
)
from pipeline.reports.drift_page import Unsure, drift_html
from pipeline.reports.page import clean
from pipeline.reports.template import template
from pipeline.system.errors import PipelineError, RequestError, counted
from pipeline.system.files import replace_text, require_others
from pipeline.system.folders import require_writable
from pipeline.system.tables import csv_text
from pipeline.system.terminal import native_messages_to, printable, standard_output
from pipeline.verbs.drift import Drift
from pipeline.verbs.drift.pictures import KEY, NewPictures, new_pictures, of_drift

if TYPE_CHECKING:
    from jinja2 import Template

    from pipeline.tracking.models import LoadedModel
    from pipeline.tracking.values import RecordedRun

_CONFIDENCE, ASSIGNED, GIVEN = "confidence", "predicted classes", "classes"
_FEATURES = "features"
_MOST = 2000  # test images whose features are compared, at most
_UNSURE = 24  # pictures on the page


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """The comparison of new pictures with the data of run `run_id`.

    `values` are those of the new pictures, by quantity; `smallest` is the smallest distance that
    counts for so many pictures, above 1 for too few; `unknown` are classes that the run does not
    have.
    """

    run_id: str
    pictures: int
    shifts: tuple[Shift, ...]
    smallest: float
    output: Path
    page: Path
    reference: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    values: Mapping[str, Array] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    unreadable: int = 0
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> list[Shift]:
        """The shifts that were found, the largest first."""
        return sorted((s for s in self.shifts if s.level), key=lambda s: (-s.level, -s.distance))

    @property
    def remarks(self) -> list[str]:
        """Further remarks on the comparison, one line each."""
        said = list(self.notes)
        if self.unknown:
            said.append(f"classes that the run does not have: {', '.join(self.unknown)}")
        if self.unreadable:
            files = counted(self.unreadable, "file", "files")
            said.append(f"left out, as they cannot be read: {files}")
        return said

    @property
    def verdict(self) -> str:
        """The conclusion of the comparison, in a sentence or two."""
        if not self.found:
            return self._none_found()
        far = any(shift.level == 2 for shift in self.found)
        told = ", ".join(_in_words(shift) for shift in self.found)
        advice = (
            "Check the model on labelled ones before trusting it there."
            if far
            else "Watch the model's accuracy on them."
        )
        how = "far " if far else ""
        return f"The new pictures differ {how}from the training data: {told}. {advice}"

    def _none_found(self) -> str:
        if self.smallest > 1:
            few = counted(self.pictures, "new picture is", "new pictures are")
            return f"No drift found, but {few} too few to find a shift of values; compare more."
        alike = counted(self.pictures, "new picture looks", "new pictures look")
        return (
            f"No drift found: {alike} like the training data. "
            f"Among so many, a shift shows from a distance of {self.smallest:.2f}."
        )


def _in_words(shift: Shift) -> str:
    if shift.detail:
        return f"{shift.name} ({clean(shift.detail)})"
    if shift.new == shift.reference:
        return f"{shift.name} (spread)"
    way = "higher" if shift.new > shift.reference else "lower"
    return f"{shift.name} ({way}: median {shift.new:.3g} instead of {shift.reference:.3g})"


def drift(config: Config, request: Drift, folder: Path) -> Drifted:
    """Compares new pictures with the training data of a run, by themselves and through its model.

    The model's features are compared with those of the test images, if the cache still has these.

    Raises:
        RequestError: there are no such pictures or no such run, the run has no summary of its
            data, or the results cannot be written or would replace a list that is read.
    """
    if request.path is None:
        raise RequestError(
            "path: say which pictures to compare, path=<folder, archive or list of new pictures>"
        )
    located(request.path, KEY)  # a path that is not there is told before the run is looked for
    for written in (request.output, request.page):
        require_writable(Path(written).parent, holds="the results of drift")
    run = _reference(config)
    summary = _summary(run)
    pictures = new_pictures(request.path, run.config.dataset, summary.classes)
    results = [Path(request.output), Path(request.page)]
    require_others(results, pictures.listing.lists, f"{KEY}={request.path}")
    packed = _packed(pictures, summary, run.id, Path(config.data_dir))
    with native_messages_to(folder / "tensorflow.log"):
        predictions = _predictions(run) if run.model_uri else None
        model = _model(run, config) if predictions else None
    known = _Known(summary=summary)
    notes = ["the run has no model or no predictions: confidences are not compared"]
    if model is not None:
        directions, notes = _directions(run, config, model, request.batch_size)
        known = _Known(summary=summary, predictions=predictions, directions=directions)
    new = _measured(packed, model, known.directions, request.batch_size)
    compared = _compared(known, new, _given(pictures, packed))
    result = Drifted(
        run_id=run.id,
        pictures=len(packed.images),
        shifts=compared.shifts,
        smallest=smallest_seen(summary.images, len(packed.images), len(compared.shifts)),
        output=Path(request.output),
        page=Path(request.page),
        reference=compared.reference,
        values=compared.values,
        unknown=_unknown(pictures, summary),
        unreadable=len(packed.unreadable),
        notes=(*pictures.remarks, *notes),
    )
    replace_text(result.output, _table(result))
    unsure = _unsure(packed, result.values.get(_CONFIDENCE))
    page = _page(template("drift.html"), result, unsure, printable(request.path))
    replace_text(result.page, page)
    return result


def show(result: Drifted, request: Drift) -> None:
    """Prints the table, the verdict and the path of the page.

    Raises:
        PipelineError: a shift was found, and `fail` is set.
    """
    table = Table("", show_edge=False)
    for column in ("training", "new", "distance", "p", "PSI", ""):
        table.add_column(column, justify="right" if column else "left")
    for one in result.shifts:
        numbers = (f"{one.distance:.3f}", f"{one.p:.2g}", f"{one.psi:.3f}")
        medians = (f"{value:.4g}" if value == value else "" for value in (one.reference, one.new))
        detail = f" ({clean(one.detail)})" if one.detail else ""
        table.add_row(one.name, *medians, *numbers, Text(one.verdict + detail))
    console = standard_output()
    console.print(table)
    for remark in result.remarks:
        console.print(remark, soft_wrap=True)
    console.print(result.verdict, soft_wrap=True)
    found = ",".join(shift.name.replace(" ", "_") for shift in result.found) or "none"
    print(f"drift={found} run_id={result.run_id} page={result.page}", flush=True)
    if request.fail and result.found:
        raise PipelineError("drift.fail=true: the new pictures differ from the training data")


def _reference(config: Config) -> RecordedRun:
    """The run of `run_id`, else the champion's."""
    from pipeline.tracking.client import connect
    from pipeline.tracking.models import find_version
    from pipeline.tracking.runs import MODELS, by_id, find_run
    from pipeline.tracking.values import champion_uri

    if config.run_id is not None:
        return find_run(config.run_id, config, latest=MODELS, called="finished run")
    client, uri = connect(config.tracking.uri), champion_uri(config.choices.dataset)
    try:
        run_id = find_version(client, uri).run_id
    except RequestError as error:
        raise RequestError(
            f"run_id: dataset {config.choices.dataset} has no champion; name the run to compare "
            "with, run_id=<id> or run_id=latest, or another dataset=…"
        ) from error
    return by_id(client, str(run_id))


def _summary(run: RecordedRun) -> DataSummary:
    if not run.has(SUMMARY_FILE):
        raise RequestError(
            f"run_id={run.id}: has no {SUMMARY_FILE}, as an earlier version recorded it or it "
            f"ended too early; `python -m pipeline evaluate run_id={run.id}` adds it"
        )
    return parsed(run.text(SUMMARY_FILE))


def _packed(pictures: NewPictures, summary: DataSummary, run_id: str, data_dir: Path) -> Packed:
    """The new pictures as images of the shape and fit that those of the run have.

    Raises:
        RequestError: the run's images have other channels than pictures can have.
    """
    height, width, channels = summary.shape
    if channels not in MODES:
        raise RequestError(
            f"run_id={run_id}: its images have {channels} channels; pictures have 1 or 3"
        )
    packing = Packing(size=(height, width), channels=channels, fit=summary.fit or PAD)
    with of_drift():
        return pack(Selection(listing=pictures.listing, packing=packing), data_dir / "drift")


def _model(run: RecordedRun, config: Config) -> LoadedModel:
    from pipeline.tracking.client import connect
    from pipeline.tracking.models import load_model, require_own_model

    require_own_model(connect(config.tracking.uri), run)
    return load_model(str(run.model_uri), config.tracking)


def _predictions(run: RecordedRun) -> tuple[Array, dict[str, int]] | None:
    """Confidences f32[N] on images not trained on, and how often each class was predicted.

    None if the run was evaluated on no split.
    """
    from pipeline.tracking.values import PREDICTIONS

    stored = run.predictions() if run.has(PREDICTIONS) else {}
    if not stored:
        return None
    one = stored["test" if "test" in stored else "val"]
    counts = np.bincount(one.predicted, minlength=len(one.class_names)).tolist()
    return one.probabilities.max(axis=1), dict(zip(one.class_names, counts, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """Measurements of new pictures: values by quantity, features, predicted classes.

    The features are their values along the directions of the reference, f64[N,D+1]; None without
    these.
    """

    values: Mapping[str, Array]
    features: Array | None
    assigned: Counter[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """What new pictures are compared with.

    With the run's model, `predictions` are those on images not trained on: confidences f32[N] and
    the number of images of each class; `directions` are those of the features, None if the cache
    lacks the images or the model has no features that can be told.
    """

    summary: DataSummary
    predictions: tuple[Array, Mapping[str, int]] | None = None
    directions: Directions | None = None

    def values(self) -> dict[str, tuple[Sequence[float], int]]:
        """By quantity: sorted values or quantiles, and the number of values."""
        grey = self.summary.shape[2] == 1
        found: dict[str, tuple[Sequence[float], int]] = {
            name: (of, self.summary.images)
            for name, of in self.summary.quantities.items()
            if not (grey and name == "colour")
        }
        if self.predictions is not None:
            sure = self.predictions[0]
            found[_CONFIDENCE] = (np.sort(sure).tolist(), len(sure))
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    """The shifts, and the values behind them by quantity: of the training data, sorted, and new."""

    shifts: tuple[Shift, ...]
    reference: Mapping[str, tuple[float, ...]]
    values: Mapping[str, Array]


def _compared(known: _Known, new: _Measured, given: Mapping[str, int] | None) -> _Compared:
    """Compares what was measured; `given` counts the new pictures of each class, if known."""
    reference = known.values()
    values = {
        name: rounded(of) if name in known.summary.quantities else of
        for name, of in new.values.items()
        if name in reference
    }
    shifts = [of_values(name, *reference[name], values[name]) for name in values]
    if known.predictions is not None:
        shifts.append(of_classes(ASSIGNED, known.predictions[1], new.assigned))
    if known.directions is not None and new.features is not None:
        shift, before, values[_FEATURES] = of_features(_FEATURES, known.directions, new.features)
        shifts.append(shift)
        reference[_FEATURES] = (np.sort(before).tolist(), len(before))
    if given is not None:
        shifts.append(of_classes(GIVEN, known.summary.classes, given))
    return _Compared(
        shifts=tuple(judged(shifts)),
        reference={name: tuple(of) for name, (of, _) in reference.items()},
        values=values,
    )


def _measured(
    packed: Packed, model: LoadedModel | None, directions: Directions | None, batch_size: int
) -> _Measured:
    """Measures the images as the model sees them.

    Features may be as large as the images, so that only their values along `directions` are kept.
    """
    from pipeline.training.predictor import with_features

    forward = with_features(model.model) if model else None
    shape = packed.images.shape[1:]
    at_once = min(images_at_once(shape, batch_size), images_per_block(shape))
    found: list[Array] = []
    sure: list[Array] = []
    seen: list[Array] = []
    assigned: Counter[str] = Counter()
    for start in range(0, len(packed.images), at_once):
        images = np.asarray(packed.images[start : start + at_once])
        inverted = to_invert(images, model.dark_border if model else None)
        images = with_inverted(images, inverted)
        found.append(quantities_of(images))
        if model and forward:
            features, probabilities = forward(images)
            if features is not None and directions is not None:
                seen.append(directions.along(features))
            sure.append(probabilities.max(axis=1))
            assigned.update(
                model.class_names[position] for position in most_probable(probabilities).tolist()
            )
    values = dict(zip(QUANTITIES, np.concatenate(found).T, strict=True))
    values |= sizes(np.asarray(packed.sizes))
    if model is not None:
        values[_CONFIDENCE] = np.concatenate(sure)
    return _Measured(
        values=values, features=np.concatenate(seen) if seen else None, assigned=assigned
    )


def _directions(
    run: RecordedRun, config: Config, model: LoadedModel, batch_size: int
) -> tuple[Directions | None, list[str]]:
    """The directions of the features of up to _MOST test images, if available, and remarks."""
    from pipeline.training.graph import head_input
    from pipeline.training.predictor import with_features

    name = run.config.choices.dataset
    raw = cached(name, run.fingerprint or "", data_dir=Path(config.data_dir))
    if raw is None:
        return None, [f"the run's images are not in {config.data_dir}: features are not compared"]
    if len(raw.test) < FEWEST:
        return None, [f"the run has {len(raw.test)} test images: features are not compared"]
    if head_input(model.model) is None:
        return None, ["the model's last layer takes no features: they are not compared"]
    forward = with_features(model.model)
    positions = np.unique(np.linspace(0, len(raw.test) - 1, _MOST).astype(np.int64))
    shape = raw.train.image_shape
    size = min(images_at_once(shape, batch_size), images_per_block(shape))
    parts = [positions[start : start + size] for start in range(0, len(positions), size)]
    found = [forward(raw.test.take(part))[0] for part in parts]
    features = np.concatenate([features for features in found if features is not None])
    return directions_of(features), []


def _given(pictures: NewPictures, packed: Packed) -> Counter[str] | None:
    """The number of readable pictures of each class, None without classes."""
    if not pictures.has_classes:
        return None
    listing = pictures.listing
    return Counter(
        listing.class_names[label]
        for file, label in zip(listing.files, listing.labels.tolist(), strict=True)
        if file not in packed.unreadable
    )


def _unknown(pictures: NewPictures, summary: DataSummary) -> tuple[str, ...]:
    names = pictures.listing.class_names if pictures.has_classes else ()
    return tuple(clean(name) for name in names if name not in summary.classes)


def _table(result: Drifted) -> str:
    """The shifts as CSV."""
    head = ("quantity", "training", "new", "distance", "p", "psi", "verdict", "detail")
    rows = [
        (
            one.name,
            *(f"{value:.6g}" if value == value else None for value in (one.reference, one.new)),
            *(f"{value:.6g}" for value in (one.distance, one.p, one.psi)),
            one.verdict,
            clean(one.detail),
        )
        for one in result.shifts
    ]
    return csv_text([head, *rows])


def _unsure(packed: Packed, sure: Array | None) -> list[Unsure]:
    """The pictures of least confidence; `sure` f32[N] is None if no model was asked."""
    if sure is None:
        return []
    return [
        Unsure(
            image=np.asarray(packed.images[position]),
            file=printable(packed.files[position]),
            confidence=float(sure[position]),
        )
        for position in np.argsort(sure, kind="stable")[:_UNSURE].tolist()
    ]


def _page(form: Template, result: Drifted, unsure: Sequence[Unsure], path: str) -> str:
    return drift_html(
        form,
        result.shifts,
        run_id=result.run_id,
        path=path,
        pictures=result.pictures,
        verdict=result.verdict,
        notes=result.remarks,
        reference=result.reference,
        values=result.values,
        unsure=unsure,
    )
