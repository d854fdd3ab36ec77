"""The descriptions of a registered model and its versions, and the ledger with its gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.reports.notes import (
    REPORT_PAGE,
    accuracy_table,
    code_block,
    escaped,
    markdown_table,
    summary,
)
from pipeline.tracking.registry import Registry
from pipeline.tracking.values import (
    CHAMPION,
    LONGEST_DESCRIPTION,
    SIGNED,
    Present,
    RecordedRun,
    champion_uri,
)
from pipeline.verbs.promote.ledger import (
    FORCED,
    REFUSED,
    Attempt,
    artifact,
    attempts_in,
    from_text,
    gate_rows,
    history_markdown,
    reading,
)

SHOWN_ATTEMPTS = 20  # of the ledger, in the description of the registered model


def note_of_version(run: RecordedRun, attempt: Attempt) -> str:
    """Describes a version: its accuracies with intervals, how it was promoted, its command."""
    how = "with the gates overruled" if attempt.decision == FORCED else "through the gates"
    instead = f" in place of version {attempt.replaces}" if attempt.replaces else ""
    reason = f": {escaped(attempt.reason)}" if attempt.reason else ""
    changed = " and uncommitted changes" if run.has_uncommitted_changes else ""
    page = f"#/experiments/{run.experiment_id}/runs/{run.id}"
    report = f", [its report]({page}/artifacts/{REPORT_PAGE})" if run.has(REPORT_PAGE) else ""
    parts = [
        summary(run.config, run.logged.get("model/parameters")),
        _accuracies(run),
        f"Judged {attempt.when:%Y-%m-%d %H:%M} UTC by {escaped(attempt.who)}, "
        f"{attempt.decision}{instead} {how}{reason}."
        if attempt.decision != REFUSED
        else f"A challenger: refused {attempt.when:%Y-%m-%d %H:%M} UTC, by {escaped(attempt.who)}.",
        _gates(attempt),
        code_block(run.command),
        f"[Run {escaped(run.label)}]({page}){report}; "
        f"code {(run.commit or 'unknown')[:7]}{changed}",
    ]
    return "\n\n".join(filter(None, parts))


def note_of_model(
    registry: Registry, present: Present, attempts: Sequence[Attempt], champion: RecordedRun | None
) -> str:
    """Describes a registered model: its champion with accuracies, and the ledger's newest attempts.

    `attempts` is the ledger with its gates, `champion` the run of the current champion. It has as
    many of the attempts as fit into what a database keeps.
    """
    version = present.aliases.get(CHAMPION)
    what = f"Classifies images of **{escaped(registry.name)}**. " + (
        f"Its champion is version {version}, `{champion_uri(registry.name)}`."
        if version
        else "It has no champion yet."
    )
    accuracies = _accuracies(champion) if champion else ""
    ledger = "**Ledger**, the newest first (`python -m pipeline history` shows all of it):"

    def note(most: int) -> str:
        parts = [what, accuracies, ledger, history_markdown(attempts, most)]
        return "\n\n".join(filter(None, parts))

    longest = LONGEST_DESCRIPTION - len(SIGNED)
    fitting = (most for most in range(SHOWN_ATTEMPTS, 1, -1) if len(note(most)) <= longest)
    return note(next(fitting, 1))


def whole_ledger(registry: Registry, present: Present, newest: int | None = None) -> list[Attempt]:
    """The ledger, oldest first; the `newest` attempts, or all, have the gates from their runs."""
    attempts = attempts_in(present.tags, registry.name)
    start = 0 if newest is None else max(0, len(attempts) - newest)
    return [
        *attempts[:start],
        *(_with_gates(registry, attempt) for attempt in attempts[start:]),
    ]


def _with_gates(registry: Registry, attempt: Attempt) -> Attempt:
    name = artifact(attempt.key)
    text = None if attempt.gates else registry.attached(attempt.run_id, name)
    if not text:
        return attempt
    with reading(f"run {attempt.run_id}: its artefact {name}", "restore or delete it"):
        return replace(attempt, gates=from_text(attempt.key, text).gates)


def _gates(attempt: Attempt) -> str:
    rows = gate_rows(attempt.gates)
    return markdown_table(("gate", "value", "limit", ""), rows) if rows else ""


def _accuracies(run: RecordedRun) -> str:
    measured = {
        split: (run.metrics[f"{split}/accuracy"], run.sizes[split])
        for split in ("test", "val")
        if f"{split}/accuracy" in run.metrics and run.sizes.get(split)
    }
    return accuracy_table(measured)
