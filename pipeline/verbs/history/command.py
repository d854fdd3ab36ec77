"""The verb `history`, from the registered model to its ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.schema import Config
from pipeline.system.terminal import standard_output
from pipeline.tracking.registry import open_registry
from pipeline.tracking.values import CHAMPION
from pipeline.verbs.history import History
from pipeline.verbs.promote.describe import whole_ledger
from pipeline.verbs.promote.ledger import Attempt, history_document, history_table
from pipeline.verbs.promote.switch import settle


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All attempts to change the champion of the registered model `name`, newest last."""

    name: str
    aliases: Mapping[str, int]
    attempts: Sequence[Attempt]


def history(config: Config, request: History, folder: Path) -> Ledger:
    """The ledger of the data set's registered model.

    Raises:
        RequestError: somebody has changed an attempt in it so that it cannot be read.
    """
    registry = open_registry(config.tracking, config.choices.dataset)
    settle(registry)
    present = registry.present()
    return Ledger(
        name=registry.name, aliases=present.aliases, attempts=whole_ledger(registry, present)
    )


def show_history(ledger: Ledger, request: History) -> None:
    """Prints the ledger as a table or as JSON."""
    console = standard_output()
    if request.format == "json":
        document = history_document(ledger.attempts, ledger.name, ledger.aliases)
        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif ledger.attempts:
        console.print(history_table(ledger.attempts, ledger.name, ledger.aliases.get(CHAMPION)))
    else:
        console.print(f"{ledger.name} has no ledger yet; it begins with the first `promote`")
