"""`sync`: sends what runs recorded while their store was away, or without one."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pipeline.config.rules import TypedPath
from pipeline.config.schema import Config, Tracking
from pipeline.system.errors import PipelineError, RequestError, one_line
from pipeline.system.secrets import has_hidden
from pipeline.verbs import OF_RUNS, Verb

if TYPE_CHECKING:
    from pipeline.tracking.client import Client
    from pipeline.tracking.delivery import Sent


@dataclass
class Sync:
    """Which runs to send."""

    folder: TypedPath | None = MISSING
    """Folder of one run; null sends all below `outputs/` and `multirun/` in the current folder."""


SYNC = Verb(
    name="sync",
    ignores=(OF_RUNS | {"run_id", "dataset", "data_dir"}) - {"tracking.artifact_root"},
    first="folder",
    help="send runs that were recorded while their store was away, or with tracking.offline=true",
    entry="pipeline.verbs.sync:sync",
    show="pipeline.verbs.sync:show",
    request=Sync,
    keeps_log=False,
)


@dataclass(frozen=True, kw_only=True)
class Unsent:
    """A run that could not be sent, and why."""

    folder: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.folder}: not sent: {self.reason}"


def sync(config: Config, request: Sync, folder: Path) -> list[Sent | Unsent]:
    """Sends the journals of runs to the store, each record once, and deletes them.

    A run gets the status and the times in its journal. One whose process died is closed as KILLED.
    Without `tracking.uri`, each run is sent to the store in which it was opened, if its address has
    no password, and to the default store otherwise.

    Raises:
        RequestError: the folder has nothing to send, or the only store cannot be used.
    """
    from pipeline.tracking.journal import has_journal, with_journals

    if request.folder is None:
        folders = with_journals(Path())
    else:
        folders = [Path(request.folder)]
        if not has_journal(folders[0]):
            raise RequestError(f"sync.folder={folders[0]}: there is nothing to send")
    return list(_sent(folders, config.tracking))


def _sent(folders: Sequence[Path], tracking: Tracking) -> Iterator[Sent | Unsent]:
    """Sends the journals of one store after those of another."""
    from pipeline.tracking.client import connect  # MLflow, which nothing above needs
    from pipeline.tracking.journal import require_file

    of_stores: dict[str | None, list[Path]] = defaultdict(list)
    for folder in folders:
        of_stores[tracking.uri or _store_of(folder)].append(folder)
    for uri, some in of_stores.items():
        try:
            if uri is not None and tracking.uri is None:
                require_file(uri, some[0])
            client = connect(uri)
        except RequestError as error:
            if len(of_stores) == 1:
                raise
            yield from (Unsent(folder=folder, reason=str(error)) for folder in some)
        else:
            yield from (_sent_or_not(client, folder, tracking.artifact_root) for folder in some)


def _store_of(folder: Path) -> str | None:
    """The store that has the run; None, for the default store, if none has or it has a password."""
    from pipeline.tracking.journal import opened_at

    store = None
    with suppress(OSError):  # which sending meets again, and tells
        store = opened_at(folder)
    return None if store is None or has_hidden(store) else store


def _sent_or_not(client: Client, folder: Path, root: str | None) -> Sent | Unsent:
    from pipeline.tracking.delivery import send_journal

    try:
        return send_journal(client, folder, artifact_root=root)
    except Exception as error:  # the other runs are sent all the same
        is_ours = isinstance(error, RequestError)
        return Unsent(folder=folder, reason=str(error) if is_ours else one_line(error))


def show(results: Sequence[Sent | Unsent], request: Sync) -> None:
    """Prints a line per run.

    Raises:
        PipelineError: some could not be sent.
    """
    for result in results:
        print(result)
    if not results:
        print("nothing to send")
    sys.stdout.flush()
    if failed := sum(isinstance(result, Unsent) for result in results):
        raise PipelineError(f"{failed} of {len(results)} runs could not be sent; try again later")
