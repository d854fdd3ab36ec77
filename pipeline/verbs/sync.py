"""`sync`: sends what runs recorded while their store was away, or without one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from pipeline.config.rules import TypedPath
from pipeline.config.schema import Config
from pipeline.system.errors import PipelineError, RequestError, one_line
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
    ignores=OF_RUNS | {"run_id", "dataset", "data_dir"},
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

    Raises:
        RequestError: the folder has nothing to send, or the store cannot be used.
    """
    from pipeline.tracking.journal import has_journal, with_journals

    if request.folder is None:
        folders = with_journals(Path())
    else:
        folders = [Path(request.folder)]
        if not has_journal(folders[0]):
            raise RequestError(f"sync.folder={folders[0]}: there is nothing to send")
    if not folders:
        return []
    from pipeline.tracking.client import connect  # MLflow, which none of the above needs

    client = connect(config.tracking.uri)
    return list(_sent(client, folders, config.tracking.artifact_root))


def _sent(client: Client, folders: Sequence[Path], root: str | None) -> Iterator[Sent | Unsent]:
    from pipeline.tracking.delivery import send_journal

    for folder in folders:
        try:
            yield send_journal(client, folder, artifact_root=root)
        except Exception as error:  # the other runs are sent all the same
            is_ours = isinstance(error, RequestError)
            yield Unsent(folder=folder, reason=str(error) if is_ours else one_line(error))


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
