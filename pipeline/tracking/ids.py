"""Finds the run that a person names by its id, or by as much of the id's beginning as is needed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.system.databases import without_password
from pipeline.system.errors import RequestError

SHORTEST = 4  # characters of an id, as with git
WHOLE = 32
SHOWN = 3  # of the ids that fit
MOST_EXPERIMENTS = 5_000


def find_by_id(
    client: mlflow.MlflowClient, given: str, *, key: str = "run_id", kind: str = "run"
) -> Run:
    """The run with that id, or the only one whose id begins so.

    A whole id is asked for alone, a beginning searched for in all experiments. Messages name the
    `key` of the command line that it was given by and the `kind` of run that it should be.

    Raises:
        RequestError: no run fits, or several.
    """
    if is_beginning(given):
        experiments = client.search_experiments(max_results=MOST_EXPERIMENTS)
        ids = [experiment.experiment_id for experiment in experiments]
        return find_by_beginning(client, given, ids, key=key, kind=kind)
    try:
        return client.get_run(given)
    except MlflowException as error:
        raise _no_such_run(client, given, key, kind) from error


def is_beginning(given: str) -> bool:
    """Whether it can be the beginning of an id, and is no whole one."""
    return SHORTEST <= len(given) < WHOLE and re.fullmatch("[0-9a-fA-F]+", given) is not None


def find_by_beginning(
    client: mlflow.MlflowClient,
    given: str,
    experiments: Sequence[str],
    *,
    key: str,
    kind: str = "run",
) -> Run:
    """The only run of these experiments whose id begins so.

    Raises:
        RequestError: no run fits, or several; or it is no beginning of an id.
    """
    if not is_beginning(given):
        raise _no_such_run(client, given, key, kind)
    where = f"attributes.run_id LIKE '{given.lower()}%'"
    fitting = client.search_runs(list(experiments), where, max_results=SHOWN + 1)
    if not fitting:
        raise _no_such_run(client, given, key, kind)
    if len(fitting) > 1:
        ids = [run.info.run_id for run in fitting[:SHOWN]] + ["…"] * (len(fitting) > SHOWN)
        raise RequestError(
            f"{key}={given}: fits several runs ({', '.join(ids)}); give more characters"
        )
    return fitting[0]


def _no_such_run(client: mlflow.MlflowClient, given: str, key: str, kind: str) -> RequestError:
    return RequestError(
        f"{key}={given}: there is no such {kind} in {without_password(client.tracking_uri)}; give "
        f"its id, or of that the first {SHORTEST} or more characters; tracking.uri=… names another "
        "store"
    )
