"""Where Optuna keeps a study: a database, or a journal file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lazy_loader
import sqlalchemy as sa

from pipeline.system.databases import reason, without_password
from pipeline.system.errors import RequestError

optuna: Any = lazy_loader.load("optuna")


def open_storage(place: str) -> Any:
    """Optuna's storage at a database URL or, for any other text, in a journal file of that path.

    Raises:
        RequestError: the database cannot be used.
    """
    if "://" in place:
        try:
            return optuna.storages.RDBStorage(place)
        except (ImportError, sa.exc.SQLAlchemyError) as error:
            shown = without_password(place)
            raise RequestError(f"sweep.storage={shown} cannot be used: {reason(error)}") from error
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    journal = optuna.storages.journal
    return journal.JournalStorage(journal.JournalFileBackend(place))
