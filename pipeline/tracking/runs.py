"""Finds recorded runs: by a query, by id or the beginning of one, the newest, the best.

Queries are translated to MLflow's search grammar and run by whole pages.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pipeline.config.named_runs import teacher_runs, weights_run
from pipeline.config.schema import Config, Tracking
from pipeline.data.values import KEPT, Prepared, RawData
from pipeline.system.errors import RequestError, joined, some_of
from pipeline.system.files import replacing
from pipeline.tracking.client import (
    Client,
    address_of,
    connect,
    experiment_name,
    experiment_names,
    is_passing,
    shown_address,
    store_away,
)
from pipeline.tracking.models import KERAS_FILE, fetched, load_model, require_own_model
from pipeline.tracking.values import (
    CHOSEN_DATASET,
    INDEX,
    LOCAL_ID,
    MODEL_URI,
    PARENT,
    PRECISION,
    PRUNED_TAG,
    RUN_FOLDER,
    SOURCE,
    SWEEP_FOLDER,
    TEACHER,
    WEIGHTS_SHA256,
    Query,
    RecordedRun,
    Status,
    hide_tag,
)
from pipeline.training.pretrained import weights_sha256

_PAGE = 5_000  # runs per request
# Characters of an id: the shortest allowed beginning (as in git), and a whole id
SHORTEST, WHOLE = 4, 32
_SHOWN = 3  # matching ids in a message
MOST_NAMES = 8  # of classes in a message
SPARE = 50  # additional runs to read
MODELS = Query(status=(Status.FINISHED,), has_model=True)  # what can be evaluated or promoted


def find_runs(query: Query, tracking: Tracking) -> list[RecordedRun]:
    """Finds the matching runs of a store, in the requested order.

    Raises:
        RequestError: the store cannot be used.
    """
    return list(search(connect(tracking.uri), query))


def find_run(
    run_id: str, config: Config, *, latest: Query | None = None, called: str = "run"
) -> RecordedRun:
    """Finds a run by its id or the beginning of it; `latest` is the newest of the experiment.

    The query `latest` selects the runs that qualify as latest; messages call such a run `called`.

    Raises:
        RequestError: there is no such run, or it was deleted.
    """
    client = connect(config.tracking.uri)
    if run_id != "latest":
        return by_id(client, run_id)
    return newest(client, latest or Query(), config, key="run_id", called=called)


def with_weights(config: Config, log: Callable[[dict[str, str]], None] | None = None) -> Config:
    """The configuration with a run in `model.weights` replaced by the file of its saved model.

    The file is kept beside the data; it is inspected like any other before it is used. `log`
    receives a tag with the checksum of a file that the configuration names.

    Raises:
        RequestError: there is no such run, or it has no model.
    """
    run = _weights_run(config)
    if run is None or run.model_uri is None:
        if log and (sha256 := weights_sha256(config.model)):
            log({WEIGHTS_SHA256: sha256})
        return config
    file = Path(config.data_dir) / "weights" / f"{run.id}.keras"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with fetched(run.model_uri, config.tracking) as saved, replacing(file) as path:
            shutil.copyfile(saved.folder / KERAS_FILE, path)
    return replace(config, model=config.model | {"weights": str(file)})


def precision_tag(config: Config, precision: str) -> dict[str, str]:
    """A tag with the `precision` of a model, if the configuration leaves it open."""
    return {PRECISION: precision} if config.train.precision == "auto" else {}


def require_same_weights(run: RecordedRun, config: Config) -> None:
    """Checks that the file of pretrained weights is what it was when the run began.

    Raises:
        RequestError: it has changed, so that the run's head does not fit it.
    """
    if run.tags.get(WEIGHTS_SHA256) not in (None, weights_sha256(config.model)):
        raise RequestError(
            f"run {run.label}: model.weights={config.model['weights']} has changed since, and its "
            "head does not fit other weights; restore the file"
        )


def as_trained(config: Config, run: RecordedRun) -> Config:
    """The configuration of a run with the precision that `auto` chose, and its teachers' whole ids.

    Another machine would choose another precision, and further runs may have ids that begin
    alike. Runs of earlier versions have not recorded it.
    """
    train = config.train
    if train.precision == "auto":
        train = replace(train, precision=run.tags.get(PRECISION, train.precision))
    if train.teacher is not None and TEACHER in run.tags:
        ids = run.tags[TEACHER].split(", ")
        train = replace(train, teacher=ids if isinstance(train.teacher, list) else ids[0])
    return replace(config, train=train)


def require_named_runs(config: Config) -> None:
    """Checks that the runs that `train.teacher` and `model.weights` name have models.

    Raises:
        RequestError: there is no such run, or it has no model of its own.
    """
    _teachers(config)
    _weights_run(config)


def require_sound_leakage(config: Config, data: RawData | Prepared) -> None:
    """Checks that `evaluate.leakage` would not test weights on images that they were trained on.

    Raises:
        RequestError: `model.weights` names a run on the same data.
    """
    if config.evaluate.leakage:
        told = "was trained on images that evaluate.leakage=true tests on"
        require_weights_of_other_data(config, data, told)


def require_weights_of_other_data(config: Config, data: RawData | Prepared, told: str) -> None:
    """Checks that `model.weights` does not name a run on this data; `told` says why that is wrong.

    It is the same data if it has the same content or, since images may have been excluded or
    changed meanwhile, comes from the same place and shares pictures, as far as can be told.

    Raises:
        RequestError: names the key.
    """
    source = weights_run(config)
    if source is None:
        return
    run = find_run(source, config)
    same_place = run.source == hide_tag(SOURCE, data.source)
    if run.fingerprint == data.fingerprint or (same_place and _may_share(run, config, data)):
        raise RequestError(
            f"model.weights={source}: that run ({run.source}) {told}; leave the weights out, or "
            "name a run on other data"
        )


def _may_share(run: RecordedRun, config: Config, data: RawData | Prepared) -> bool:
    """Whether a run's pictures may be among those of `data`; several lists may lie in one place."""
    import numpy as np

    from pipeline.data.load import cached

    name, fingerprint = run.config.choices.dataset, run.fingerprint or ""
    known = cached(name, fingerprint, data_dir=Path(config.data_dir))
    if known is None or known.index is None or data.index is None:
        return True
    indices = (known.index, data.index)
    theirs, ours = (np.ascontiguousarray(one.digests).view("V32").ravel() for one in indices)
    return bool(np.isin(ours, theirs).any())


def _teachers(config: Config) -> dict[str, RecordedRun]:
    """The runs that `train.teacher` names, by the words for them."""
    named = teacher_runs(config)
    found = {one: _with_model(one, config, key="train.teacher") for one in named}
    if len({run.id for run in found.values()}) < len(named):
        raise RequestError(f"train.teacher={joined(named)}: these name a run twice")
    return found


def _weights_run(config: Config) -> RecordedRun | None:
    source = weights_run(config)
    return None if source is None else _with_model(source, config, key="model.weights")


def _with_model(source: str, config: Config, *, key: str) -> RecordedRun:
    client = connect(config.tracking.uri)
    run = by_id(client, source, key=key)
    if run.model_uri is None:
        raise RequestError(f"{key}={source}: run {run.id} has no saved model")
    require_own_model(client, run)
    return run


def load_teachers(
    config: Config, prepared: Prepared, log: Callable[[dict[str, str]], None] | None = None
) -> list[Any]:
    """The Keras models of the runs that `train.teacher` names.

    `log` receives a tag with the whole ids of these runs.

    Raises:
        RequestError: there is no such run, it has no model of its own, or one of other classes or
            images than `prepared`.
    """
    runs = _teachers(config)
    if runs and log is not None:
        log({TEACHER: ", ".join(run.id for run in runs.values())})
    return [_teacher_for(prepared, source, run, config.tracking) for source, run in runs.items()]


def _teacher_for(prepared: Prepared, source: str, run: RecordedRun, tracking: Tracking) -> Any:
    try:
        loaded = load_model(str(run.model_uri), tracking)
    except RequestError as error:
        raise RequestError(f"train.teacher={source}: {error}") from error
    if loaded.class_names != prepared.class_names:
        theirs, ours = (some_of(one.class_names, MOST_NAMES) for one in (loaded, prepared))
        raise RequestError(
            f"train.teacher={source}: its classes are {theirs}, not {ours}; a teacher needs the "
            "same classes in the same order"
        )
    if loaded.image_shape != prepared.image_shape:
        raise RequestError(
            f"train.teacher={source}: takes images {loaded.image_shape}, not "
            f"{prepared.image_shape}; train both on images of the same size (dataset.size)"
        )
    return loaded.model


def find_trained(run_id: str, config: Config, *, metric: str | None = None) -> RecordedRun:
    """Finds a run with a model: by id, the `latest`, or the `best` by `metric`.

    Raises:
        RequestError: there is no such run, or it has no model or configuration.
    """
    if run_id == "best" and metric:
        run = best_trained(config, metric)
    else:
        run = find_run(run_id, config, latest=MODELS, called="finished run")
    if run.model_uri is None:
        raise RequestError(f"run_id={run_id} ({run.status}) has saved no model")
    require_own_model(connect(config.tracking.uri), run)
    run.config  # noqa: B018 - read now, or refused
    return run


def find_sweep(sweep_id: str, config: Config, *, key: str = "sweep.resume") -> RecordedRun:
    """Finds a sweep's own run by id, beginning of an id, or `latest`; messages name the `key`.

    Raises:
        RequestError: there is no such sweep.
    """
    client = connect(config.tracking.uri)
    if sweep_id == "latest":
        return newest(client, Query(is_sweep=True), config, key=key, called="sweep")
    run = by_id(client, sweep_id, key=key, kind="sweep")
    if not run.is_sweep:
        raise RequestError(f"{key}={sweep_id}: there is no such sweep")
    return run


def newest(client: Client, query: Query, config: Config, *, key: str, called: str) -> RecordedRun:
    """The newest matching run in the experiment of the configuration.

    Raises:
        RequestError: there is none; the message names another experiment that has one.
    """
    name = experiment_name(config)
    found = list(search(client, replace(query, experiment=name, limit=1)))
    if found:
        return found[0]
    raise RequestError(
        f"{key}=latest: experiment {name} has no {called}{_elsewhere(client, query)}"
    )


def _elsewhere(client: Client, query: Query) -> str:
    """Names the experiment with the newest matching run, as a hint."""
    others = list(search(client, replace(query, experiment=None, limit=1)))
    if not others:
        return ""
    name = others[0].experiment
    return f"; the newest is in experiment {name}: tracking.experiment={name}"


def by_id(client: Client, given: str, *, key: str = "run_id", kind: str = "run") -> RecordedRun:
    """Finds the run with that id, or the only run whose id begins like this.

    It may also be the local id that the run had before a store knew it. A whole id of the store
    takes one request; a beginning is searched in all experiments. Messages name the `key` of the
    command line and the expected `kind` of run.

    Raises:
        RequestError: no run matches, several match, or the run was deleted.
        StoreAway: the store does not answer.
    """
    if is_beginning(given):
        return by_beginning(client, given, key=key, kind=kind)
    try:
        run = client.get_run(given)
    except MlflowException as error:
        if is_passing(error):
            raise store_away(client, error) from error
        if named := list(search(client, Query(tags={LOCAL_ID: given}, limit=1))):
            return named[0]  # the id that it had before a store knew it
        raise _no_such_run(client, given, key, kind) from error
    if run.info.lifecycle_stage != "active":
        raise _deleted(run.info.run_id, given, key)
    name = str(client.get_experiment(run.info.experiment_id).name)
    return from_mlflow(run, name, shown_address(client))


def is_beginning(given: str) -> bool:
    """Whether it can be the beginning of an id, but is not a whole one."""
    return SHORTEST <= len(given) < WHOLE and re.fullmatch("[0-9a-fA-F]+", given) is not None


def by_beginning(client: Client, given: str, *, key: str, kind: str = "run") -> RecordedRun:
    """Finds the only run whose id, or local id, begins like this.

    Raises:
        RequestError: no run matches, several match, or this cannot be the beginning of an id.
    """
    if not is_beginning(given):
        raise _no_such_run(client, given, key, kind)
    begins, most = given.lower(), _SHOWN + 1
    named = [(run.id, run) for run in search(client, Query(begins=begins, limit=most))]
    known = {run.id for _, run in named}
    local = search(client, Query(begins_locally=begins, limit=most))
    fitting = named + [(run.tags[LOCAL_ID], run) for run in local if run.id not in known]
    if not fitting:
        for run in search(client, Query(begins=begins, deleted=True, limit=1)):
            raise _deleted(run.id, given, key)
        raise _no_such_run(client, given, key, kind)
    if len(fitting) > 1:
        ids = [shown for shown, _ in fitting[:_SHOWN]] + ["…"] * (len(fitting) > _SHOWN)
        raise RequestError(
            f"{key}={given}: matches several runs ({', '.join(ids)}); give more characters"
        )
    return fitting[0][1]


def _deleted(run_id: str, given: str, key: str) -> RequestError:
    return RequestError(
        f"{key}={given} was deleted; `mlflow runs restore --run-id {run_id}` brings it back"
    )


def _no_such_run(client: Client, given: str, key: str, kind: str) -> RequestError:
    return RequestError(
        f"{key}={given}: there is no such {kind} in {address_of(client)}; give "
        f"its id or at least the first {SHORTEST} characters of it; tracking.uri=… names another "
        "store"
    )


def find_best(
    client: Client, query: Query, metric: str, *, most: int, lower_is_better: bool = False
) -> list[RecordedRun]:
    """The `most` best matching runs by a metric, which is that of the kept weights."""

    def look(order: Sequence[str], limit: int) -> list[RecordedRun]:
        return list(search(client, replace(query, order=order, limit=limit)))

    return best_by_kept(look, metric, most=most, lower_is_better=lower_is_better)


def best_by_kept(
    look: Callable[[Sequence[str], int], Sequence[RecordedRun]],
    metric: str,
    *,
    most: int,
    lower_is_better: bool = False,
) -> list[RecordedRun]:
    """The `most` best of the runs that `look(order, number)` finds; ties go to the oldest.

    A run recorded before `kept/…` existed is judged by its last epoch, since the best epoch of its
    history would take a request per run. MLflow can sort by one metric and then by another, but not
    by whichever exists: if there are more runs than wanted, those best by the last epoch are
    searched as well.
    """
    way = "" if lower_is_better else "-"
    has_kept = metric.startswith("val/")
    first = [f"{way}{KEPT}{metric}"] * has_kept + [f"{way}{metric}"]
    found = list(look([*first, "started"], most + 1))
    if has_kept and len(found) > most:
        known = {run.id for run in found}
        others = look([f"{way}{metric}", "started"], most + SPARE)
        found += [run for run in others if run.id not in known]
    return sorted(found, key=lambda run: _rank(run, metric, lower_is_better))[:most]


def _rank(run: RecordedRun, metric: str, lower_is_better: bool) -> tuple[bool, float, int]:
    value = run.metrics.get(metric, math.nan)
    return math.isnan(value), value if lower_is_better else -value, run.started


def best_trained(config: Config, metric: str) -> RecordedRun:
    """The best finished run with a model in the experiment of the configuration.

    If the experiment has runs on several data sets (`-m dataset=mnist,digits`), whose metrics
    cannot be compared, it is the best on that of the configuration.

    Raises:
        RequestError: there is none, or the experiment has runs on several other data sets only.
    """
    name, client = experiment_name(config), connect(config.tracking.uri)
    query, dataset = replace(MODELS, experiment=name), config.choices.dataset
    best = find_best(client, query, metric, most=1)
    if best and best[0].tags.get(CHOSEN_DATASET) != dataset:
        alike = replace(query, tags={CHOSEN_DATASET: dataset})
        best = find_best(client, alike, metric, most=1) or [_only_kind(client, query, best[0])]
    if not best or metric not in best[0].metrics:
        raise RequestError(
            f"run_id=best: experiment {name} has no finished run with a model and {metric}; "
            "train one, or choose another with dataset=… or tracking.experiment=…"
        )
    return best[0]


def _only_kind(client: Client, query: Query, best: RecordedRun) -> RecordedRun:
    """The best run, if all runs of the query are on one data set.

    Raises:
        RequestError: they are on several; names these.
    """
    found = {run.tags.get(CHOSEN_DATASET, "") for run in search(client, query)}
    if len(found) > 1:
        raise RequestError(
            f"run_id=best: experiment {query.experiment} has runs on {', '.join(sorted(found))}; "
            "say on which, with dataset=…"
        )
    return best


def metric_history(
    client: Client, run_id: str, metrics: Sequence[str] | None = None
) -> dict[str, dict[int, float]]:
    """All values of a run's metrics, or of those named, by name and step; a request per metric."""
    names = list(client.get_run(run_id).data.metrics) if metrics is None else metrics
    return {
        name: {point.step: point.value for point in client.get_metric_history(run_id, name)}
        for name in names
    }


def search(client: Client, query: Query) -> Iterator[RecordedRun]:
    """Yields the matching runs of a store, page by page."""
    names, store = experiment_names(client, query.experiment), shown_address(client)
    left, token = query.limit, None
    while names and left != 0:
        with _left_as_read():
            page = client.search_runs(
                list(names),
                _condition(query),
                ViewType.DELETED_ONLY if query.deleted else ViewType.ACTIVE_ONLY,
                max_results=min(left or _PAGE, _PAGE),
                order_by=[_clause(one) for one in query.order],
                page_token=token,
            )
        for run in page:
            yield from_mlflow(run, names[run.info.experiment_id], store)
        left, token = left and left - len(page), page.token
        if not token:
            return


def _condition(query: Query) -> str:
    """The query in MLflow's grammar, with quoted values."""
    parts = []
    if query.status is not None:
        if len(query.status) == 1:
            parts.append(f"attributes.status = '{query.status[0]}'")
        else:  # the grammar lacks OR
            others = [status for status in Status if status not in query.status]
            parts += [f"attributes.status != '{status}'" for status in others]
    if query.ids is not None:
        listed = ", ".join(map(_quoted, query.ids))
        parts.append(f"attributes.run_id IN ({listed})")
    if query.begins is not None:
        parts.append(f"attributes.run_id LIKE {_quoted(query.begins + '%')}")
    if query.begins_locally is not None:
        parts.append(f"tags.`{LOCAL_ID}` LIKE {_quoted(query.begins_locally + '%')}")
    if query.has_metric is not None:
        parts.append(f"metrics.`{query.has_metric}` > -1.7e308")
    flags = (
        (SWEEP_FOLDER, query.is_sweep),
        (MODEL_URI, query.has_model),
        (RUN_FOLDER, query.has_folder),
        (PRUNED_TAG, query.is_pruned),
        (PARENT, query.parent),
        (INDEX, None if query.index is None else str(query.index)),
    )
    tags = {name: value for name, value in flags if value is not None} | dict(query.tags)
    return " AND ".join([*parts, *(_tag(name, value) for name, value in tags.items())])


def _tag(name: str, value: str | bool) -> str:
    if isinstance(value, str):
        return f"tags.`{name}` = {_quoted(value)}"
    return f"tags.`{name}` != ''" if value else f"tags.`{name}` IS NULL"


def _quoted(text: str) -> str:
    """Quotes a text for MLflow's grammar, which has no escapes.

    Raises:
        RequestError: it contains both kinds of quotation marks.
    """
    if "'" in text and '"' in text:
        raise RequestError(f"{text}: MLflow cannot search for both kinds of quotation marks")
    return f'"{text}"' if "'" in text else f"'{text}'"


def _clause(order: str) -> str:
    name, way = order.removeprefix("-"), "DESC" if order.startswith("-") else "ASC"
    return f"attributes.start_time {way}" if name == "started" else f"metrics.`{name}` {way}"


@contextmanager
def _left_as_read() -> Iterator[None]:
    """Makes SQLAlchemy keep what a transaction has read, instead of expiring it at the end.

    To expire a hundred values of each of a thousand runs takes 0.4 s, and MLflow does not read
    them again.
    """
    if "sqlalchemy.orm" not in sys.modules:  # the store is a server
        yield
        return
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    def begun(session: Session, *_: Any) -> None:
        session.expire_on_commit = False

    event.listen(Session, "after_begin", begun)
    try:
        yield
    finally:
        event.remove(Session, "after_begin", begun)


def from_mlflow(run: Run, experiment: str, store: str) -> RecordedRun:
    """Converts MLflow's run to a `RecordedRun`; `experiment` is the name of its experiment."""
    known = Status.__members__.get(run.info.status)
    return RecordedRun(
        id=run.info.run_id,
        name=run.info.run_name or "",
        experiment=experiment,
        status=known or Status.RUNNING,  # for example SCHEDULED, which has not ended either
        started=run.info.start_time,
        ended=run.info.end_time,
        params=run.data.params,
        tags=run.data.tags,
        logged=run.data.metrics,
        sizes=_sizes(run),
        artifacts=run.info.artifact_uri,
        experiment_id=str(run.info.experiment_id),
        store=store,
    )


def _sizes(run: Run) -> Mapping[str, int]:
    """Number of images by split, from the data that the run logged."""
    for logged in run.inputs.dataset_inputs if run.inputs else ():
        profile: dict[str, int] = json.loads(logged.dataset.profile or "{}")
        sizes = {key.removesuffix("_images"): profile[key] for key in profile}
        if "test" in sizes:
            return sizes
    return {}
